"""What is fuzzed: one function for each parser of bytes from outside.

A target takes any bytes.  It may return, or swallow an error of `orlop.errors`: those are answers.  Any
other exception is a finding, and so is a broken promise, which is an `AssertionError`: that what was
accepted is valid, that it reads back as it was written, that the answer does not depend on how the bytes
were cut into chunks.

Targets hold no state, and know nothing of the fuzzer: `fuzz/drive.py` feeds them under atheris,
`tests/unit/test_fuzz_corpus.py` without it.  Checksums are put right before parsing where a format has
one, since a fuzzer does not guess them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from orlop.config import DEFAULT_LIMITS, ProxySettings, load
from orlop.erofs import format as erofs
from orlop.erofs.reader import Image
from orlop.errors import DataLoss, Error, Internal, NotFound
from orlop.images.archives.legacy import V1Images, config_of, parse_repositories
from orlop.images.running.accounts import MAX_ID, resolve_user
from orlop.layers import pax
from orlop.layers.builder import clean
from orlop.layers.compression import decompress
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.layers.tarread import TarReader
from orlop.registry.access.challenge import parse_challenges
from orlop.registry.access.credentials import Credential, Helper, find
from orlop.registry.access.tokens import parse_token, pick, token_request
from orlop.registry.blobs.downloads import parse_content_range
from orlop.registry.faults import redact, registry_message, scrub
from orlop.registry.finding.hostfiles.hosts_toml import parse_hosts_toml
from orlop.registry.finding.hostfiles.registries_conf import parse_registries_conf
from orlop.registry.finding.hosts import Endpoint, endpoints, origin_of
from orlop.registry.messages import Request, Response
from orlop.registry.net.proxies import Proxies
from orlop.registry.net.redirects import next_hop, settle
from orlop.registry.net.retry import parse_retry_after
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Index, encode, parse_config, parse_json, parse_manifest
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.testing import applied
from orlop.testing.gnutar import sealed
from orlop.testing.layers import Layer

__all__ = ["TARGETS"]

PLAIN_BYTES = 8 << 20  # of decompressed data that are looked at
LIMITS = replace(
    DEFAULT_LIMITS, layer_entries=20_000, pax_size=1 << 16, file_size=1 << 24, xattr_count=64, depth=64
)
MAX_MEMBERS = 60
_PARTS = (b"a", b"b", b"c", b"d", b"..", b".", b"", b".wh.a")
_XATTRS: tuple[dict[str, bytes], ...] = (
    {},
    {},
    {"user.a": b"1"},
    {"trusted.overlay.opaque": b"y"},
    {"trusted.overlay.overlay.whiteout": b"", "security.capability": b"x"},
)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_PLATFORM = Platform(os="linux", architecture="arm", variant="v7")
_SECURE = Endpoint(registry="r.example", origin=origin_of("https://r.example", "fuzz"))


# ------------------------------------------------------------------ layers


def tar(data: bytes) -> None:
    """An archive, read whole and in pieces, indexed, checked and merged."""
    data = sealed(data)
    whole, why = _read(data, len(data) or 1)
    for chunk in (1 if len(data) <= 2048 else 511, 513):
        again, why_again = _read(data, chunk)
        assert (again, type(why_again)) == (whole, type(why)), (
            f"cut in chunks of {chunk}: {why} or {why_again}"
        )
    with _answers():
        applied.apply_tars([data], limits=LIMITS)


def layers(data: bytes) -> None:
    """Layers put together from an alphabet that the fuzzer combines: merged and stacked they show one tree."""
    tars = [layer.tar() for layer in _layers(data)]
    with _answers():
        tree = applied.apply_tars(tars)
        stack = applied.stacked(tars)
        if stack is not None:
            assert applied.shown(stack) == tree, "the stack shows another tree than the merged image"


def pax_records(data: bytes) -> None:
    """The body of an extended header, and what is made of its records."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    with _answers():
        pax.parse(data, records, sparse, LIMITS)
        whole = b"".join(pax.record(key, value) for key, value in records.items())
        again: dict[bytes, bytes] = {}
        pax.parse(whole, again, [], LIMITS)
        assert again == records, "the records do not survive"
    for value in records.values():
        with _answers():
            seconds, nsec = pax.time(value)
            assert 0 <= nsec < 1_000_000_000
            assert abs(seconds) <= 1 << 63
        with _answers():
            assert pax.number(value, "fuzz") >= 0
    with _answers():
        found = pax.xattrs(records, LIMITS)
        assert list(found) == sorted(dict(found).items())


def index(data: bytes) -> None:
    """The file ``layer.index``, or what a worker answers: decoded, and if it is valid, merged."""
    if len(data) >= 4:
        data = data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
    with _answers():
        found = LayerIndex.decode(data)
        assert LayerIndex.decode(found.encode()) == found, "the index does not survive"
        found.validate(tar_size=found.tar_size, limits=LIMITS)
        if found.tar_size <= 1 << 20 and DataLayout(found).size <= 1 << 24:
            applied.merged_indexes([(bytes(found.tar_size), found)])


def erofs_image(data: bytes) -> None:
    """A metadata image, read whole and by name."""
    if len(data) >= erofs.SUPER_OFFSET + erofs.BLOCK:
        data += bytes(-len(data) % erofs.BLOCK)
        raw = bytearray(data)
        at = erofs.SUPER_OFFSET
        struct.pack_into("<I", raw, at + 36, len(raw) // erofs.BLOCK)  # the count of blocks
        struct.pack_into("<I", raw, at + 4, erofs.checksum(raw[at : at + erofs.BLOCK]))
        data = bytes(raw)
    with suppress(DataLoss), Image(data) as image:
        for count, (path, inode) in enumerate(image.walk()):
            with suppress(DataLoss):
                found = image.lookup(path)
                assert found == inode, "a name leads elsewhere when it is looked up"
                image.xattrs(inode)
                kind = inode.mode & 0o170000
                if kind == 0o120000:
                    assert image.target(inode)
                elif kind == 0o100000:
                    assert sum(extent.length for extent in image.extents(inode)) == inode.size
            if count > 5_000 or len(path) > 20_000:
                break  # links within a small image may make a huge tree; the walk itself holds no more


def compressed(data: bytes) -> None:
    """A blob in whatever form: the plain bytes do not depend on how the blob was cut."""
    whole, why = _plain([data])
    pieces, why_pieces = _plain([data[at : at + 7] for at in range(0, len(data), 7)])
    length = min(len(whole), len(pieces))
    assert whole[:length] == pieces[:length], "other bytes when cut in pieces"
    if len(whole) < PLAIN_BYTES and len(pieces) < PLAIN_BYTES:
        assert type(why) is type(why_pieces), f"{why} or {why_pieces}"


# ------------------------------------------------------------------ documents and names


def document(data: bytes) -> None:
    """A manifest, an index, a config, or any JSON; the first byte says which."""
    kind, data = data[:1], data[1:]
    with _answers():
        if kind == b"c":
            config = parse_config(data, "fuzz")
            config.platform()
            assert len(config.diff_ids()) == len(config.rootfs.diff_ids)
            return
        if kind == b"j":
            parse_json(data, "fuzz")
            return
        media_type, _, data = data.partition(b"\n")
        found = parse_manifest(data, media_type.decode("latin-1"), "fuzz")
        if isinstance(found, Index):
            found.choose(_PLATFORM)
        again = parse_manifest(encode(found), found.media_type, "fuzz")
        assert again == found, "the document does not survive"


def names(data: bytes) -> None:
    """References, digests, platforms: what is accepted reads back from its own text."""
    text = data.decode("utf-8", "surrogateescape")
    with _answers():
        reference = Reference.parse(text)
        assert Reference.parse(str(reference)) == reference
        assert len(reference.name) <= 255
        endpoints(reference.registry)
    with _answers():
        digest = Digest(text)
        assert Digest(str(digest)) == digest
        assert "/" not in digest
    with _answers():
        platform = Platform.parse(text)
        assert Platform.parse(str(platform)) == platform
        platform.rank(_PLATFORM)
    parts = clean(data)
    assert clean(b"/".join(parts)) == parts
    assert not {b"", b".", b".."} & set(parts)


def accounts(data: bytes) -> None:
    """A user's name, and an image's /etc/passwd and /etc/group, with NULs between them."""
    name, _, rest = data.partition(b"\0")
    passwd, _, group = rest.partition(b"\0")
    with TemporaryDirectory() as root:
        etc = Path(root) / "etc"
        etc.mkdir()
        (etc / "passwd").write_bytes(passwd)
        (etc / "group").write_bytes(group)
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with _answers():
                user = resolve_user(name.decode("utf-8", "surrogateescape"), root_fd=folder)
                assert all(0 <= number <= MAX_ID for number in (user.uid, user.gid, *user.groups))
                assert user.home.startswith("/")
                assert user.home.isprintable()
        finally:
            os.close(folder)


def hostfiles(data: bytes) -> None:
    """Files that say where registries are: a hosts.toml, or a registries.conf and names to look for in it."""
    for registry in ("docker.io", "r.example:5000", "127.0.0.1:5000"):
        with _answers():
            for ways in parse_hosts_toml(data, registry=registry, folder="/d", source="fuzz"):
                for way in ways:
                    url = way.url("a/manifests/1")
                    assert origin_of(url, "fuzz") == way.origin, "a path leads to another server"
                    assert url.isascii()
                    assert url.isprintable()
                    assert not set("\r\n") & set("".join(value for pair in way.headers for value in pair))
                    assert way.mirror == bool(way.namespace)
                    assert all(name.startswith("/") for name in way.ca)
    with _answers():
        conf = parse_registries_conf(data, source="fuzz")
        for name in ("alpine", "r.example/a/b@sha256:" + 64 * "0", "x.r.example:5000/a:1"):
            ref = Reference.parse(name)
            namespace = conf.of(str(ref))
            if namespace is not None:
                assert namespace.matched(str(ref)) >= 0
                with _answers():
                    for registry, repository, _ in namespace.sources(ref, "fuzz"):
                        assert Reference.parse(f"{registry}/{repository}").name == f"{registry}/{repository}"


def proxies(data: bytes) -> None:
    """A proxy's URL and the list of what is reached without one, on the lines after it."""
    first, *rest = data.decode("utf-8", "replace").split("\n")
    with _answers():
        found = Proxies(ProxySettings(http=first, https=first, no=tuple(rest)))
        for url in ("https://r.example", "http://10.1.2.3:5000", "https://[fd00::1]", "http://localhost"):
            proxy = found.of(origin_of(url, "fuzz"))
            if proxy is not None:
                assert "localhost" not in url, "this machine through a proxy"
                assert "@" not in str(proxy.origin)
                assert proxy.authorization.isprintable()


def settings(data: bytes) -> None:
    """A file of settings."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(data)
        with _answers():
            load(path).settings()


def v1images(data: bytes) -> None:
    """The oldest form of docker's archives, with NULs between: repositories, and each image's json (0, 1, …)."""
    first, *texts = data.split(b"\0")
    said = {f"{number:x}": text for number, text in enumerate(texts)}

    def read(identity: str) -> bytes:
        if identity not in said:
            raise NotFound("fuzz", "there is no such image")
        return said[identity]

    named: dict[str, str] = {}
    with _answers():
        named = parse_repositories(first, "fuzz", limits=LIMITS)
    images = V1Images(read, "fuzz", limits=LIMITS)
    for identity in {*named.values(), *list(said)[:8]}:
        with _answers():
            chain = images.chain(identity)
            assert len(set(chain)) == len(chain) <= LIMITS.layers
            diff_ids = tuple(DiffID(f"sha256:{number:064x}") for number in range(len(chain)))
            made = [
                config_of(of.top(identity), of.history(chain), diff_ids, "fuzz", limits=LIMITS)
                for of in (images, V1Images(read, "fuzz", limits=LIMITS))
            ]
            assert made[0] == made[1], "another config the second time"
            config = parse_config(made[0], "fuzz")
            assert config.diff_ids() == diff_ids
            assert len(config.history or ()) == len(chain)
            config.platform()


# ------------------------------------------------------------------ what registries say


def challenge(data: bytes) -> None:
    """A WWW-Authenticate header, and the request for a token that it leads to."""
    header = data.decode("latin-1")
    found = parse_challenges(header)
    chosen = pick(found)
    if chosen is None or chosen.scheme != "bearer":
        return
    for credential in (None, Credential(username="u", password="p"), Credential(identity_token="t")):
        with _answers():
            request = token_request(
                chosen, credential, endpoint=_SECURE, scopes=("repository:a:pull",), attempted="fuzz"
            )
            assert request.url.startswith("https://"), "credentials in the clear"
            assert request.url.isprintable()
            assert " " not in request.url


def headers(data: bytes) -> None:
    """Retry-After, Content-Range, Location; the first byte says which."""
    kind, value = data[:1], data[1:].decode("latin-1")
    if kind == b"r":
        seconds = parse_retry_after(value, _NOW)
        assert seconds is None or seconds >= 0
    elif kind == b"c":
        extent = parse_content_range(value)
        assert extent is None or extent.first is None or 0 <= extent.first <= (extent.last or 0)
    elif kind == b"u":
        assert "\n" not in scrub(redact(value))
    else:
        request = Request(
            method="GET",
            url="https://r.example/v2/a",
            endpoint=_SECURE,
            attempted="fuzz",
            headers={"Authorization": "secret"},
        )
        answer = Response(status=307, reason="", url=request.url, headers={"location": value})
        with _answers():
            url = settle(_SECURE, request.url, value, "fuzz")
            assert url.startswith("https://"), "a way down from TLS"
            assert settle(_SECURE, request.url, url, "fuzz") == url
            hop = next_hop(request, answer, [request.url])
            assert hop is not None
            there = origin_of(hop.url, "fuzz")
            assert ("Authorization" in hop.headers) == (there == _SECURE.origin), "a secret went along"


def answers(data: bytes) -> None:
    """The JSON of a token server, of a registry's error, of a file of credentials."""
    with _answers():
        token = parse_token(data, now=0.0, personal=True, attempted="fuzz")
        assert 0.0 <= token.expires <= 86_400.0
        assert token.header.isprintable()
    said = registry_message(data)
    assert said.isprintable()
    assert len(said) < 400
    with _answers():
        auths = parse_json(data, "fuzz")
        for registry in ("docker.io", "r.example:5000"):
            for found in find(auths, registry, "a/b", scheme="https"):
                assert isinstance(found, Credential | Helper)


# ------------------------------------------------------------------ helpers


@contextmanager
def _answers() -> Iterator[None]:
    """Errors are answers, but for one that says of itself that it is a bug."""
    try:
        yield
    except Internal:
        raise
    except Error:
        return


def _layers(data: bytes) -> list[Layer]:
    """Up to four layers: five bytes a member, from small alphabets, so that members hit each other."""
    found = [Layer()]
    for at in range(0, min(len(data), 5 * MAX_MEMBERS), 5):
        kind, first, second, about, *rest = data[at : at + 5].ljust(5, b"\0")
        if kind == 0xFF:
            if len(found) < 4:
                found.append(Layer())
            continue
        name, other = _path(first), _path(second)
        meta = {
            "mode": about & 0o777,
            "uid": rest[0],
            "mtime_ns": (about - 128) * 1_000_000_007,
            "xattrs": _XATTRS[about % len(_XATTRS)],
        }
        layer = found[-1]
        match kind % 10:
            case 0:
                layer.folder(name, **meta)
            case 1 | 2:
                layer.file(name, b"x" * (8 * second), **meta)
            case 3:
                layer.symlink(name, other or b"/", **meta)
            case 4 | 5:
                layer.hardlink(name, other)
            case 6:
                layer.whiteout(name)
            case 7:
                layer.opaque(name)
            case 8:
                layer.device(name, "char", second % 3, rest[0] % 2, **meta)
            case _:
                layer.sparse(name, 512 * second + 900, (512 * (second // 2), b"s" * 512), **meta)
    return found


def _path(byte: int) -> bytes:
    """One to three parts of a path out of a byte."""
    parts = [_PARTS[byte & 7]]
    if byte & 0x18:
        parts.append(_PARTS[byte >> 3 & 3])
    if byte & 0xE0:
        parts.append(_PARTS[byte >> 5])
    return b"/".join(parts)


def _read(data: bytes, chunk: int) -> tuple[list[tuple[object, ...]], Error | None]:
    """What the reader yields before it ends, and why it ended."""
    found: list[tuple[object, ...]] = []
    reader = TarReader((data[at : at + chunk] for at in range(0, len(data), chunk)), limits=LIMITS)
    try:
        for entry in reader:
            assert 0 <= entry.offset <= len(data)
            if entry.extents is None:
                assert entry.offset + entry.size <= len(data)
            else:
                assert all(source + length <= len(data) for _, length, source in entry.extents)
            found.append(tuple(getattr(entry, name) for name in entry.__slots__))
            if len(found) > LIMITS.layer_entries:
                break
    except Error as exc:
        return found, exc
    return found, None


def _plain(chunks: list[bytes]) -> tuple[bytes, Error | None]:
    out = bytearray()
    try:
        for chunk in decompress(chunks):
            out += chunk
            if len(out) >= PLAIN_BYTES:
                break
    except Error as exc:
        return bytes(out), exc
    return bytes(out), None


TARGETS: dict[str, Callable[[bytes], None]] = {
    "accounts": accounts,
    "answers": answers,
    "challenge": challenge,
    "compressed": compressed,
    "document": document,
    "erofs": erofs_image,
    "headers": headers,
    "hostfiles": hostfiles,
    "index": index,
    "layers": layers,
    "names": names,
    "pax": pax_records,
    "proxies": proxies,
    "settings": settings,
    "tar": tar,
    "v1images": v1images,
}
"""By the name of the folder that holds a target's corpus."""
