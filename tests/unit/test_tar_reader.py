"""The tar reader beside `tarfile` and GNU tar.

Where it differs from `tarfile`, one of the tests under "explained differences" says so and why.
"""

from __future__ import annotations

import io
import itertools
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.errors import Error, InvalidArgument, ResourceExhausted
from orlop.layers.entry import Entry
from orlop.layers.tarread import TarReader
from support.layers import MTIME, Format, Layer, SparseForm

SECOND = 1_000_000_000
LIMITS = DEFAULT_LIMITS
Seen = tuple[object, ...]


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, *, chunk: int = 1 << 20, limits: object = LIMITS) -> list[Entry]:
    return list(TarReader(chunked(data, chunk), limits=limits))  # type: ignore[arg-type]


def one(layer: Layer) -> Entry:
    (entry,) = read(layer.tar())
    return entry


def content(data: bytes, entry: Entry) -> bytes:
    if entry.extents is None:
        return data[entry.offset : entry.offset + entry.size]
    out = bytearray(entry.size)
    for offset, length, source in entry.extents:
        out[offset : offset + length] = data[source : source + length]
    return bytes(out)


def seen(data: bytes, entry: Entry) -> Seen:
    """An entry as a value to compare, without where it stands."""
    return (
        entry.name.rstrip(b"/"),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.nsec,
        entry.size,
        entry.link,
        entry.rdev,
        entry.xattrs,
        entry.dirty,
        content(data, entry) if stat.S_ISREG(entry.mode) else b"",
    )


KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: 0,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def by_tarfile(data: bytes) -> list[Seen]:
    """The same of `tarfile`; mtimes in whole seconds, since it reads them as floats."""
    found: list[Seen] = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            kind = KINDS[member.type]
            file = tar.extractfile(member) if kind == stat.S_IFREG else None
            found.append(
                (
                    member.name.encode("utf-8", "surrogateescape").rstrip(b"/"),
                    kind | member.mode & 0o7777,
                    member.uid,
                    member.gid,
                    int(member.mtime // 1),
                    member.size if kind == stat.S_IFREG else 0,
                    member.linkname.encode("utf-8", "surrogateescape") if member.type in b"12" else b"",
                    (member.devmajor, member.devminor) if member.type in b"34" else (0, 0),
                    file.read() if file else b"",
                )
            )
    return found


def as_tarfile(data: bytes) -> list[Seen]:
    ours = [seen(data, entry) for entry in read(data)]
    return [(*entry[:5], *entry[6:9], entry[11]) for entry in ours]


# ------------------------------------------------------------------ beside tarfile

NAMES = st.lists(
    st.binary(min_size=1, max_size=30).filter(
        lambda part: part not in {b".", b".."} and not {0, 0x2F} & set(part)
    ),
    min_size=1,
    max_size=6,
).map(b"/".join)


@st.composite
def members(draw: st.DrawFn, largest_id: int, times: st.SearchStrategy[int]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(draw(NAMES).decode("utf-8", "surrogateescape"))
    info.type = draw(st.sampled_from(list(set(KINDS) - {tarfile.GNUTYPE_SPARSE})))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid, info.gid = draw(st.integers(0, largest_id)), draw(st.integers(0, largest_id))
    info.mtime = draw(times)
    if info.type in b"12":
        info.linkname = draw(NAMES).decode("utf-8", "surrogateescape")
    elif info.type in b"34":
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0o7777777 >> 1))
    if KINDS[info.type] == stat.S_IFREG:
        info.size = draw(st.sampled_from([0, 1, 511, 512, 513, 1024, 3000]))
    return info


def written(infos: list[tarfile.TarInfo], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for number, info in enumerate(infos):
            tar.addfile(info, io.BytesIO(bytes([number % 255 + 1]) * info.size))
    return out.getvalue()


ANY_TIME = st.integers(-(1 << 40), 1 << 40)


@settings(max_examples=120, deadline=None)
@given(st.lists(members(2**32 - 2, ANY_TIME), max_size=8), st.sampled_from([1, 511, 4096]))
def test_reads_pax_as_tarfile_does(infos: list[tarfile.TarInfo], chunk: int) -> None:
    data = written(infos, tarfile.PAX_FORMAT)
    assert as_tarfile(data) == by_tarfile(data)
    assert [seen(data, entry) for entry in read(data, chunk=chunk)] == [
        seen(data, entry) for entry in read(data)
    ]


@settings(max_examples=120, deadline=None)
@given(st.lists(members(2**32 - 2, ANY_TIME), max_size=8))
def test_reads_gnu_as_tarfile_does(infos: list[tarfile.TarInfo]) -> None:
    data = written(infos, tarfile.GNU_FORMAT)
    assert as_tarfile(data) == by_tarfile(data)


@settings(max_examples=120, deadline=None)
@given(st.lists(members(8**7 - 1, st.integers(0, 8**11 - 1)), max_size=8))
def test_reads_ustar_and_v7_as_tarfile_does(infos: list[tarfile.TarInfo]) -> None:
    for info in infos:
        info.name, info.linkname = _cut(info.name).rstrip("/"), _cut(info.linkname)
    data = written(infos, tarfile.USTAR_FORMAT)
    assert as_tarfile(data) == by_tarfile(data)
    plain = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        entries = tar.getmembers()
    for entry in entries:
        header = plain[entry.offset : entry.offset + 512]
        if header[156:157] in b"34":  # V7 knows no devices
            header[156:157] = b"0"
        header[257:512] = bytes(255)  # no magic, no prefix
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        plain[entry.offset : entry.offset + 512] = header
    assert as_tarfile(bytes(plain)) == by_tarfile(bytes(plain))


def _cut(text: str) -> str:
    """As much of a text as fits into a header's field: 100 bytes, whatever the characters are."""
    return text.encode(errors="surrogateescape")[:99].decode(errors="surrogateescape")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_name_split_between_prefix_and_name_is_whole(data: st.DataObject) -> None:
    name = data.draw(st.integers(101, 250).map(lambda n: "d" * (n - 99) + "/" + "f" * 98))
    info = tarfile.TarInfo(name)
    tar = written([info], tarfile.USTAR_FORMAT)
    assert read(tar)[0].name == name.encode()


# ------------------------------------------------------------------ forms, one by one


def everything() -> bytes:
    """One archive of all that this file knows, in several forms."""
    layer = Layer()
    layer.pax_global({"comment": "a global header"})
    layer.folder("d", mode=0o2751, uid=2**32 - 2, gid=2**31, mtime_ns=-1)
    layer.file("d/f", b"x" * 1000, xattrs={"user.a": b"\n=\0", "security.capability": bytes(20)})
    layer.file(b"d/\xff\xfe", b"y" * 512, mtime_ns=4_102_444_800 * SECOND + 123_456_789)
    layer.file("n" * 255 + "/" + "m" * 255, b"long").hardlink("h", to="d/f").symlink("s", "t" * 200)
    layer.device("c", "char", 4095, 1048575).device("b", "block", 8, 1).fifo("p")
    layer.sparse("sp1", 100_000, [(4096, b"a" * 512), (50_000, b"b" * 10)], how="gnu-1.0")
    layer.sparse("sp2", 100_000, [(4096, b"a" * 512), (50_000, b"b" * 10)], how="gnu-0.0")
    layer.sparse("sp3", 100_000, [(4096, b"a" * 512), (50_000, b"b" * 10)], how="gnu-0.1")
    layer.add("contiguous", b"7", data=b"z" * 700)
    gnu = Layer("gnu")
    gnu.sparse("sp4", 1 << 20, [(n * 8192, b"%512d" % n) for n in range(60)], how="old-gnu")
    gnu.file("g" * 300, b"long", uid=2**32 - 2, mtime_ns=-5 * SECOND).symlink("gs", "u" * 300)
    return layer.tar(end=b"") + gnu.tar() + b"after the end marker" * 100


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, 100_000])
def test_the_size_of_the_chunks_does_not_matter(size: int) -> None:
    data = everything()
    whole, parts = TarReader([data]), TarReader(chunked(data, size))
    assert [(seen(data, a), a.offset) for a in whole] == [(seen(data, b), b.offset) for b in parts]
    assert whole.size == parts.size == len(data)


def test_empty_chunks_are_not_the_end() -> None:
    data = Layer().file("f", b"x" * 5000).file("g").tar()
    chunks = itertools.chain.from_iterable((part, b"") for part in chunked(data, 700))
    assert [entry.name for entry in TarReader(chunks)] == [b"f", b"g"]


@pytest.mark.parametrize("form", ["pax", "gnu"])
@pytest.mark.parametrize(
    "mtime_ns", [0, -1, 1, -SECOND, -SECOND - 1, 2**31 * SECOND, 8**11 * SECOND + 5, -(2**40) * SECOND - 999]
)
def test_times_are_exact(form: Format, mtime_ns: int) -> None:
    if form == "gnu":
        mtime_ns = mtime_ns // SECOND * SECOND
    entry = one(Layer(form).file("f", mtime_ns=mtime_ns))
    assert entry.mtime * SECOND + entry.nsec == mtime_ns
    assert 0 <= entry.nsec < SECOND


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"00000000017\0", 15),
        (b"00000000017 ", 15),
        (b"         17\0", 15),
        (b"17\0\0\0\0\0\0\0\0\0\0", 15),
        (b"000000000017", 15),  # all twelve bytes are digits, as libarchive writes large numbers
        (b"777777777777", 8**12 - 1),
        (bytes(12), 0),
        (b" " * 12, 0),
        (b"\x80" + (1 << 40).to_bytes(11, "big"), 1 << 40),
        (b"\xff" + (-5 % (1 << 88)).to_bytes(11, "big"), -5),
    ],
)
def test_numbers_in_all_forms(field: bytes, number: int) -> None:
    assert one(Layer().add("f", b"0", patch={136: field})).mtime == number


@pytest.mark.parametrize(
    "field", [b"0000000008\0\0", b"-0000000001\0", b"12x\0\0\0\0\0\0\0\0\0", b"\xc0" + bytes(11)]
)
@pytest.mark.parametrize("at", [124, 136])
def test_what_is_no_number_is_refused(field: bytes, at: int) -> None:
    with pytest.raises(InvalidArgument, match=r"number|octal"):
        read(Layer().add("f", b"0", patch={at: field}).tar())


def test_a_name_of_exactly_100_bytes_needs_no_end() -> None:
    layer = Layer().raw(Layer().add("n" * 100, b"0").tar(end=b""))
    assert one(layer).name == b"n" * 100


def test_a_name_ends_at_its_first_nul() -> None:
    assert one(Layer().add("f", b"0", patch={0: (b"name\0" + b"x" * 95)})).name == b"name"


def test_a_global_header_speaks_until_another_or_a_local_one_does() -> None:
    layer = Layer().pax_global({"uid": "77", "mtime": "5.5"}).file("a").file("b", uid=2**22)
    layer.add("c", b"0", uid=3, pax=[(b"uid", b"")]).pax_global({"uid": ""}).file("d")
    uids = {entry.name: entry.uid for entry in read(layer.tar())}
    assert uids == {b"a": 77, b"b": 2**22, b"c": 3, b"d": 0}
    assert {(entry.mtime, entry.nsec) for entry in read(layer.tar())} == {(5, SECOND // 2)}


def test_the_pax_size_speaks_over_the_header() -> None:
    entry = one(Layer().add("f", b"0", data=b"12345", size=0, pax=[(b"size", b"5")]))
    assert entry.size == 5


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_what_has_no_data_is_followed_by_a_header_whatever_its_size_says(kind: bytes) -> None:
    data = Layer().add("d", kind, link="t", size=5000).file("f", b"data").tar()
    assert [entry.name for entry in read(data)] == [b"d", b"f"]
    assert [entry[0] for entry in by_tarfile(data)] == [b"d", b"f"]


def test_a_volume_label_is_no_entry() -> None:
    assert [entry.name for entry in read(Layer().add("label", b"V").file("f").tar())] == [b"f"]


def test_signed_checksums_are_taken() -> None:
    header = bytearray(Layer().file(b"\xff\xfe", b"").tar(end=b"")[-512:])
    header[:2] = b"\xff\xfe"
    header[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in header)
    header[148:156] = b"%06o\0 " % total
    assert one(Layer().raw(bytes(header))).name == b"\xff\xfe"


@pytest.mark.parametrize("padding", [b"\0", b"x"])
@pytest.mark.parametrize("chunk", [1, 512, 700, 1 << 20])
def test_padding_that_is_not_zero_is_told(padding: bytes, chunk: int) -> None:
    data = bytearray(Layer().file("f", b"x" * 100).file("g").tar())
    data[612:1024] = padding * 412
    assert [entry.dirty for entry in read(bytes(data), chunk=chunk)] == [padding == b"x", False]


@pytest.mark.parametrize("how", ["old-gnu", "gnu-0.0", "gnu-0.1", "gnu-1.0"])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 60])
@pytest.mark.parametrize("last", [b"", b"the last piece"])
def test_sparse_members_have_their_bytes(how: SparseForm, count: int, last: bytes) -> None:
    pieces = [(number * 8192 + 512, b"%512d" % number) for number in range(count)]
    pieces += [(900_000, last)] if last else []
    expected = bytearray(1_000_000)
    for offset, piece in pieces:
        expected[offset : offset + len(piece)] = piece
    layer = Layer("gnu" if how == "old-gnu" else "pax")
    data = layer.sparse("d/f", 1_000_000, pieces, how=how).file("after", b"it").tar()
    sparse, after = read(data, chunk=513)
    assert (sparse.name, content(data, sparse)) == (b"d/f", bytes(expected))
    assert (after.name, content(data, after)) == (b"after", b"it")
    assert as_tarfile(data) == by_tarfile(data)


@pytest.mark.parametrize(
    "form",
    [
        ("--format=gnu",),
        ("--format=pax", "--sparse-version=0.0"),
        ("--format=pax", "--sparse-version=0.1"),
        ("--format=pax", "--sparse-version=1.0"),
    ],
    ids=" ".join,
)
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, form: tuple[str, ...]) -> None:
    file = tmp_path / "file"
    with file.open("wb") as out:
        for number in range(80):
            out.seek(number * 65536)
            out.write(b"%5000d" % number)
        out.truncate(80 * 65536 + 12345)
    data = subprocess.run(
        ["tar", "-C", tmp_path, "-cSf", "-", *form, "file"], check=True, capture_output=True
    ).stdout
    (entry,) = read(data)
    assert entry.extents is not None
    assert content(data, entry) == file.read_bytes()


def test_a_long_sparse_map_takes_time_in_proportion() -> None:
    count = 150_000
    numbers = b"".join(b"%d\n512\n" % (n * 1024) for n in range(count))
    text = b"%d\n" % count + numbers
    text += bytes(-len(text) % 512)
    pax = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1000000000")]
    data = Layer().add("f", b"0", data=text, size=len(text) + 512 * count, pax=pax).tar(end=b"")
    before = time.process_time()
    (entry,) = read(data + bytes(512 * count))
    assert len(entry.extents or ()) == count
    assert time.process_time() - before < 3


# ------------------------------------------------------------------ explained differences from tarfile


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_a_file_whose_name_ends_in_a_slash_is_a_folder_as_in_gnu_tar(tmp_path: Path, kind: bytes) -> None:
    """`tarfile` knows this of V7's type only; GNU tar of all (BSD tar wrote folders so)."""
    for inside in (b"", b"skipped"):
        data = Layer().add("d/", kind, data=inside, mode=0o755).file("f").tar()
        folder, after = read(data)
        assert (stat.S_ISDIR(folder.mode), folder.size, after.name) == (True, 0, b"f")
    data = Layer().add("d/", kind, mode=0o755).file("f").tar()  # GNU tar falls over the data
    subprocess.run(["tar", "-C", tmp_path, "-xf", "-"], input=data, check=True)
    assert (tmp_path / "d").is_dir()


def test_an_unknown_type_is_refused() -> None:
    """`tarfile` and GNU tar make a file of it; containerd and docker refuse."""
    with pytest.raises(InvalidArgument, match="unknown type 'Z'"):
        read(Layer().add("f", b"Z").tar())


def test_a_damaged_header_is_refused_anywhere() -> None:
    """`tarfile` takes one behind the first member for the end of the archive."""
    data = bytearray(Layer().file("a", b"1").file("b").tar())
    data[1024] ^= 1
    assert [entry[0] for entry in by_tarfile(bytes(data))] == [b"a"]
    with pytest.raises(InvalidArgument, match="byte 1024: its checksum does not match"):
        read(bytes(data))


def test_nanoseconds_are_not_rounded() -> None:
    """`tarfile` keeps times as floats, which hold 1,700,000,000 s to a quarter of a microsecond."""
    assert one(Layer().file("f", mtime_ns=MTIME * SECOND + 123_456_789)).nsec == 123_456_789


def test_a_single_block_of_zeros_is_not_the_end() -> None:
    """`tarfile` stops there; GNU tar warns of "a lone zero block" and reads on."""
    data = Layer().file("a").raw(bytes(512)).file("b").tar()
    assert [entry[0] for entry in by_tarfile(data)] == [b"a"]
    assert [entry.name for entry in read(data)] == [b"a", b"b"]


def test_what_follows_the_end_marker_is_counted_and_not_read() -> None:
    data = Layer().file("a").tar() + Layer().file("b").tar() + b"junk"
    reader = TarReader([data])
    assert [entry.name for entry in reader] == [b"a"]
    assert reader.size == len(data)


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(100)])
def test_the_end_marker_may_be_missing(end: bytes) -> None:
    assert [entry.name for entry in read(Layer().file("a", b"1").tar(end=end))] == [b"a"]


def test_an_empty_stream_has_no_entries() -> None:
    assert read(b"") == []


# ------------------------------------------------------------------ what is cut off, or lies

RECORD = 3 * 512  # of the first member of CUT: PAX header, its records, header
CUT = (
    Layer()
    .file("f", b"x" * 700, xattrs={"user.a": b"1"})
    .sparse("s", 99, [(0, b"1")], how="gnu-1.0")
    .tar(end=b"")
)


@pytest.mark.parametrize("chunk", [1, 600, 1 << 20])
def test_an_archive_cut_off_anywhere_is_refused_or_whole_so_far(chunk: int) -> None:
    whole = [entry.name for entry in read(CUT)]
    for end in range(0, len(CUT), 37):
        # between members, or in the padding of one, which holds no byte of it
        if end == 0 or RECORD + 700 <= end <= RECORD + 1024 or end > len(CUT) - 512:
            names = [entry.name for entry in read(CUT[:end], chunk=chunk)]
            assert names == whole[: len(names)], end
            continue
        with pytest.raises(InvalidArgument, match="cut off"):
            read(CUT[:end], chunk=chunk)


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        (Layer().add("f", b"0", size=8**11 - 1), InvalidArgument),  # no such data follow
        (Layer("gnu").add("f", b"0", size=-1), InvalidArgument),
        (Layer("gnu").add("f", b"0", size=1 << 80), ResourceExhausted),
        (Layer("gnu").add("f", b"0", mtime_ns=(1 << 80) * SECOND), InvalidArgument),
        (Layer().add("f", b"0", pax=[(b"size", b"-1")]), InvalidArgument),
        (Layer().add("f", b"0", pax=[(b"size", b"9" * 30)]), InvalidArgument),
        (Layer().add("f", b"0", pax=[(b"size", b"9" * 19)]), ResourceExhausted),
        (Layer().add("f", b"0", pax=[(b"uid", b"x")]), InvalidArgument),
        (Layer().add("f", b"0", pax=[(b"mtime", b"yesterday")]), InvalidArgument),
        (Layer().add("x", b"x", data=b"no record"), InvalidArgument),
        (Layer().add("x", b"x", data=b"99 path=x\n"), InvalidArgument),
        (Layer().add("x", b"x", size=1 << 30), ResourceExhausted),
        (Layer().add("x", b"L", size=1 << 30), ResourceExhausted),
        (Layer().raw(b"not a tar at all".ljust(512)), InvalidArgument),
    ],
)
def test_lies_in_headers_are_refused(layer: Layer, error: type[Error]) -> None:
    with pytest.raises(error):
        read(layer.tar())


def sparse_1_0(text: bytes, **records: str) -> Layer:
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4096"}
    pairs = [(key.encode(), value.encode()) for key, value in {**pax, **records}.items()]
    return Layer().add("f", b"0", data=text + bytes(-len(text) % 512), pax=pairs)


@pytest.mark.parametrize(
    "layer",
    [
        sparse_1_0(b"1\n0\n512\n"),  # the data are missing
        sparse_1_0(b"2\n512\n1\n0\n1\n" + bytes(1000)),  # out of order
        sparse_1_0(b"1\n4000\n100\n" + bytes(1000)),  # past the end
        sparse_1_0(b"99999999\n"),  # more than follow
        sparse_1_0(b"1\nx\n1\n" + bytes(1000)),
        sparse_1_0(b"1" * 600),
        sparse_1_0(b"-1\n"),
        sparse_1_0(b""),
        Layer().add("f", b"0", pax=[(b"GNU.sparse.map", b"0,1,2"), (b"GNU.sparse.size", b"9")]),
        Layer().add("f", b"0", pax=[(b"GNU.sparse.map", b"0,1")]),
        Layer().add("f", b"0", pax=[(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.size", b"9")]),
        Layer("gnu").add("f", b"S", patch={386: b"%011o\0%011o\0" % (0, 512), 483: b"%011o\0" % 99}),
        Layer("gnu").add(
            "f", b"S", patch={386: b"%011o\0%011o\0" % (0, 1), 482: b"\1", 483: b"%011o\0" % 99}
        ),
    ],
)
def test_sparse_maps_that_do_not_fit_are_refused(layer: Layer) -> None:
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        read(layer.tar(end=b""))


def test_the_apparent_size_of_a_sparse_file_is_limited() -> None:
    with pytest.raises(ResourceExhausted, match="file_size"):
        read(sparse_1_0(b"0\n", **{"GNU.sparse.realsize": str(1 << 60)}).tar())


def test_limits_are_named() -> None:
    for limits, data, name in [
        (replace(LIMITS, layer_size=100), Layer().file("f", b"x" * 101).tar(), "layer_size"),
        (replace(LIMITS, pax_size=100), Layer().file("n" * 300).tar(), "pax_size"),
        (
            replace(LIMITS, xattr_value=9),
            Layer().file("f", xattrs={"user.a": b"x" * 10}).tar(),
            "xattr_value",
        ),
        (replace(LIMITS, xattr_total=9), Layer().file("f", xattrs={"user.a": b"x" * 5}).tar(), "xattr_total"),
        (
            replace(LIMITS, xattr_count=5),
            Layer().file("f", xattrs={f"user.{n}": b"" for n in range(100)}).tar(),
            "xattr_count",
        ),
    ]:
        with pytest.raises(ResourceExhausted, match=f"{name}.*limits.{name}"):
            read(data, limits=limits)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_error_or_a_reading(data: st.DataObject) -> None:
    whole = bytearray(everything())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # a header whose checksum is right again
            at = data.draw(st.integers(0, len(whole) // 512 - 1)) * 512
            whole[at + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
            whole[at + 148 : at + 156] = b" " * 8
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(whole[at : at + 512])
    try:
        for entry in TarReader([bytes(whole)]):
            assert entry.offset + (0 if entry.extents else entry.size) <= len(whole)
            for offset, length, source in entry.extents or ():
                assert 0 <= offset <= offset + length <= entry.size
                assert source + length <= len(whole)
    except (InvalidArgument, ResourceExhausted):
        return
