"""Forms: how ids, modes, devices and xattrs stand on disk, by what the kernel lets us say.

Root writes them as they are.  Root of a container that may not mount has no ``trusted.`` xattrs, perhaps no
devices; root of a user namespace has neither; whoever has a single id may not give files away at all.  What
cannot be applied is *recorded* in the xattr ``user.containers.override_stat`` (containers/storage,
``pkg/idtools``; fuse-overlayfs reads it, too): ``uid:gid:mode:type``, a device as an empty file of type
``char-MAJOR-MINOR``.  `apply` says what goes on disk, `told` what the disk means; for all that a form can
hold they are inverse to one another.

Symlinks and FIFOs take no ``user.`` xattrs: where ids cannot be applied theirs are lost on disk.  So are
xattrs that may not be set.  An entry that is otherwise as the chain has it counts as having them still.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import struct

from orlop.hints import TYPE_CHECKING, Literal
from orlop.layers.index import Xattrs
from orlop.layers.nested import TRUSTED, USER, escape_xattrs, unescape_xattrs
from orlop.values import dataclass, replace

if TYPE_CHECKING:
    from orlop.layers.chainview import LowerEntry

__all__ = [
    "CONTAINER",
    "FORMS",
    "NAMESPACE",
    "OVERRIDE",
    "PLAIN",
    "REAL",
    "SINGLE",
    "Form",
    "FormName",
    "Stat",
    "apply",
    "record",
    "told",
]

OVERRIDE = b"user.containers.override_stat"
FormName = Literal["real", "container", "namespace", "single", "plain"]

_RECORD = re.compile(
    rb"(\d{1,10}):(\d{1,10}):([0-7]{1,5})(?::(file|dir|symlink|pipe|socket|(char|block)-(\d{1,7})-(\d{1,7})))?"
)
_KINDS = {b"char": stat.S_IFCHR, b"block": stat.S_IFBLK}
_ANY = (b"",)
_ACLS = b"system.posix_acl_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the kernel allows.

    ``spare`` is an id on disk that stands for root, where ids are mapped (-1 for none).
    ``marks`` is the prefix of overlayfs's own xattrs, empty where there is no overlay; ``owners`` whether
    files can be given to any id, ``devices`` whether devices can be made, ``xattrs`` the prefixes of
    xattrs that can be set.
    """

    name: FormName
    marks: bytes
    owners: bool
    devices: bool
    xattrs: tuple[bytes, ...]
    spare: int = -1

    @property
    def real(self) -> bool:
        """Whether everything can be written as it is."""
        return self.xattrs == _ANY

    @property
    def key(self) -> str:
        """What tells the folders of this form from those of others."""
        return str(self.name) if self.marks else f"{self.name}-bare"

    def bare(self) -> Form:
        """The same for a tree that no overlay lies over."""
        return replace(self, marks=b"")

    def holds(self, name: bytes) -> bool:
        """Whether an xattr of this name can be set."""
        return name.startswith(self.xattrs)


REAL = Form(name="real", marks=TRUSTED, owners=True, devices=True, xattrs=_ANY)
CONTAINER = Form(
    name="container", marks=USER, owners=True, devices=True, xattrs=(b"user.", b"security.capability", _ACLS)
)
NAMESPACE = Form(
    name="namespace", marks=USER, owners=True, devices=False, xattrs=(b"user.", b"security.capability", _ACLS)
)
SINGLE = Form(
    name="single", marks=USER, owners=False, devices=False, xattrs=(b"user.", b"security.capability", _ACLS)
)
PLAIN = Form(name="plain", marks=USER, owners=False, devices=False, xattrs=(b"user.", _ACLS))
FORMS: dict[FormName, Form] = {form.name: form for form in (REAL, CONTAINER, NAMESPACE, SINGLE, PLAIN)}


@dataclass(slots=True)
class Stat:
    """What an entry is: its whole st_mode, owner, device number, and xattrs (in no order)."""

    mode: int
    uid: int
    gid: int
    rdev: int
    xattrs: Xattrs

    def __init__(  # by hand: one is made for every entry that is looked at
        self, mode: int, uid: int, gid: int, rdev: int = 0, xattrs: Xattrs = ()
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.xattrs = xattrs


def apply(form: Form, entry: Stat) -> Stat:
    """What goes on disk for an entry, overlayfs's names escaped, the record of what is left out included.

    ``xattrs`` of the result are those that may be tried; an ACL that names ids may still be refused.
    """
    xattrs = escape_xattrs(entry.xattrs, form.marks) if entry.xattrs else ()
    if form.real:
        return Stat(entry.mode, entry.uid, entry.gid, entry.rdev, xattrs)
    kind = entry.mode & 0o170000
    mode, rdev = entry.mode, entry.rdev
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and not form.devices:
        mode, rdev = stat.S_IFREG | mode & 0o7777, 0
    uid, gid = entry.uid, entry.gid
    if not form.owners:
        mode, uid, gid = mode & 0o170000 | _owned(mode), 0, 0
    xattrs = tuple(pair for pair in xattrs if form.holds(pair[0]) and pair[0] != OVERRIDE)
    if mode & 0o170000 in (stat.S_IFREG, stat.S_IFDIR):
        if (mode, uid, gid) != (entry.mode, entry.uid, entry.gid):
            xattrs = (*xattrs, (OVERRIDE, record(entry)))
    elif kind in (stat.S_IFLNK, stat.S_IFIFO):
        xattrs = tuple(pair for pair in xattrs if not pair[0].startswith(b"user."))
    return Stat(mode, uid, gid, rdev, xattrs)


def _owned(mode: int) -> int:
    """Permissions with which the one who unpacked it can go on working, and nobody becomes somebody else."""
    kind = mode & 0o170000
    if kind == stat.S_IFDIR:
        return mode & 0o1777 | 0o700
    return mode & 0o777 | 0o600 if kind == stat.S_IFREG else mode & 0o777


def record(entry: Stat) -> bytes:
    """The value of `OVERRIDE` for an entry."""
    kind = entry.mode & 0o170000
    text = b"dir" if kind == stat.S_IFDIR else b"file"
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        name = b"char" if kind == stat.S_IFCHR else b"block"
        text = b"%s-%d-%d" % (name, os.major(entry.rdev), os.minor(entry.rdev))
    return b"%d:%d:%04o:%s" % (entry.uid, entry.gid, entry.mode & 0o7777, text)


def told(form: Form, about: os.stat_result, xattrs: Xattrs, orig: LowerEntry | None) -> Stat:
    """What an entry of an upper or a tree means.

    ``orig`` is what the chain has at its path: it keeps what the form could not put on disk as long as
    nothing else says that the entry is another.
    """
    pairs = unescape_xattrs(xattrs, form.marks)
    rdev = about.st_rdev if about.st_mode & 0o170000 in (stat.S_IFCHR, stat.S_IFBLK) else 0
    mode, uid, gid = about.st_mode, about.st_uid, about.st_gid
    uid, gid = 0 if uid == form.spare else uid, 0 if gid == form.spare else gid
    if form.real:
        return Stat(mode, uid, gid, rdev, pairs)
    if not form.owners:
        uid = 0 if uid == os.geteuid() else uid
        gid = 0 if gid == os.getegid() else gid
    found = _heeded(form, pairs, orig)
    if found is not None:
        pairs = tuple(pair for pair in pairs if pair[0] != OVERRIDE)
        mode, rdev = _recorded_mode(form, about, found)
        if not form.owners or (uid, gid) == (0, 0):  # else somebody gave it away since
            uid, gid = int(found[1]), int(found[2])
    if orig is None or (mode ^ orig.mode) & 0o170000:
        return Stat(mode, uid, gid, rdev, pairs)
    same_size = stat.S_ISDIR(mode) or about.st_size == orig.size or rdev != 0
    if mode & 0o170000 in (stat.S_IFLNK, stat.S_IFIFO) and same_size:  # a record would have no room
        uid = uid if form.owners and _is_mapped("uid", orig.uid) else orig.uid
        gid = gid if form.owners and _is_mapped("gid", orig.gid) else orig.gid
    if same_size and divmod(about.st_mtime_ns, 1_000_000_000) == (orig.mtime, orig.nsec):
        pairs += _kept(form, mode, orig, {name for name, _ in pairs})
    return Stat(mode, uid, gid, rdev, pairs)


def _heeded(form: Form, pairs: Xattrs, orig: LowerEntry | None) -> re.Match[bytes] | None:
    """The record of an entry, if it is to be believed.

    Who may give files away needs none but for what the image had there, and in a container anybody who
    may write to a file can set its ``user.`` xattrs: a record that says something new says nothing.
    """
    value = next((value for name, value in pairs if name == OVERRIDE), None)
    found = _RECORD.fullmatch(value) if value is not None else None
    if form.owners and found is not None:
        known = orig is not None and record(Stat(orig.mode, orig.uid, orig.gid, orig.rdev)) == value
        return found if known else None
    return found


@functools.cache
def _mapped(kind: Literal["uid", "gid"]) -> tuple[tuple[int, int], ...]:
    """The ranges of ids that our user namespace maps: first, and one past the last."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        lines = [tuple(map(int, line.split())) for line in file]
    return tuple((inside, inside + size) for inside, _, size in lines)


def _is_mapped(kind: Literal["uid", "gid"], number: int) -> bool:
    return any(first <= number < end for first, end in _mapped(kind))


def _fits(acl: bytes) -> bool:
    """Whether all users and groups of an ACL can be said here (include/uapi/linux/posix_acl_xattr.h)."""
    entries = struct.iter_unpack("<HHI", acl[4 : len(acl) - (len(acl) - 4) % 8])
    kinds: dict[int, Literal["uid", "gid"]] = {2: "uid", 8: "gid"}  # ACL_USER, ACL_GROUP
    return all(tag not in kinds or _is_mapped(kinds[tag], number) for tag, _, number in entries)


def _recorded_mode(form: Form, about: os.stat_result, found: re.Match[bytes]) -> tuple[int, int]:
    """The mode and device number of a record, unless somebody has changed the mode since."""
    kind = about.st_mode & 0o170000
    rdev = 0
    if found[5] and kind == stat.S_IFREG and not about.st_size:
        kind, rdev = _KINDS[found[5]], os.makedev(int(found[6]), int(found[7]))
    mode = kind | int(found[3], 8) & 0o7777
    disk = apply(form, Stat(mode, 0, 0, rdev)).mode
    if disk & 0o7777 != about.st_mode & 0o7777:
        mode = kind | about.st_mode & 0o7777
    return mode, rdev


def _kept(form: Form, mode: int, orig: LowerEntry, there: set[bytes]) -> Xattrs:
    """The chain's xattrs that the form could not set, ACLs of ids that are not mapped among them."""
    no_user = mode & 0o170000 not in (stat.S_IFREG, stat.S_IFDIR)
    return tuple(
        (name, value)
        for name, value in unescape_xattrs(orig.raw_xattrs, TRUSTED)
        if name not in there
        and (
            not form.holds(name)
            or (name.startswith(_ACLS) and not _fits(value))
            or (no_user and name.startswith(b"user."))
        )
    )
