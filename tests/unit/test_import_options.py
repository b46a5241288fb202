"""What an import takes: options over the wire, sources that give bytes, and what is refused."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cli.environment import source_date_epoch
from orlop.cli.exits import Misuse
from orlop.cli.imports import created_of, owner_of
from orlop.client.wireimport import options_from, options_to
from orlop.errors import InvalidArgument
from orlop.facade import Store
from orlop.images.archives.job import plain
from orlop.images.imports import FORMATS, MAX_ID, ImportOptions, Named, chunks_of, said_of, stem_of
from orlop.proto.orlop.v1 import transfer_pb2 as pb
from orlop.testing.fake import FakeStore
from support.fuzzing import trials

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
_TIME = st.none() | st.integers(-(2**62), 2**62)
_ID = st.integers(0, MAX_ID)


@trials(200)
@given(
    st.builds(
        ImportOptions,
        format=st.none() | st.just("rootfs"),
        replace=st.booleans(),
        changes=st.lists(_TEXT, max_size=3).map(tuple),
        author=_TEXT,
        message=_TEXT,
        created=_TIME,
        owner=st.none() | st.tuples(_ID, _ID),
        newest=_TIME,
    )
)
def test_options_survive_the_wire(options: ImportOptions) -> None:
    assert (
        options_from(pb.ImportOptions.FromString(options_to(options).SerializeToString()), "test") == options
    )


def test_options_that_no_import_takes_are_refused() -> None:
    for wrong in (
        ImportOptions(format="odd"),  # type: ignore[arg-type]
        ImportOptions(owner=(-1, 0)),
        ImportOptions(owner=(0, 2**32 - 1)),
        *(ImportOptions(format=form, changes=("ENV A=b",)) for form in FORMATS if form != "rootfs"),
        ImportOptions(format="oci", owner=(0, 0)),
    ):
        with pytest.raises(InvalidArgument):
            wrong.check("test")
    ImportOptions(format="oci", created=1, newest=1, replace=True).check("test")  # as SOURCE_DATE_EPOCH gives


def test_a_source_is_read_from_where_it_stands_to_its_end() -> None:
    file = io.BytesIO(b"ab" * 2_000_000)
    file.seek(3)
    assert b"".join(chunks_of(file)) == (b"ab" * 2_000_000)[3:]
    assert b"".join(chunks_of(gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"plain"))))) == b"plain"
    assert list(chunks_of([b"a", bytearray(b"b"), memoryview(b"c")])) == [b"a", b"b", b"c"]
    for text in (io.StringIO("text"), ["text"], "text"):
        with pytest.raises(InvalidArgument, match="binary"):
            list(chunks_of(text))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("my.rootfs.tar.xz", "my-rootfs"),
        ("a.tgz", "a"),
        ("a.TAR.GZ", "a"),
        ("b.tar", "b"),
        ("b.zst", "b"),
        (".tar", "import"),
        ("", "import"),
        ("-_ü", "import"),
        ("x" * 255, "x" * 100),
    ],
)
def test_a_name_is_made_of_a_files_own(name: str, made: str) -> None:
    assert plain(name) == made


def test_a_stream_may_have_a_name_and_says_none_of_its_folder() -> None:
    assert said_of(Named([], "/home/me/secret/rootfs.tar")) == "import rootfs.tar"
    assert (said_of([]), stem_of([])) == ("import -", "")
    assert (said_of("/a/b.tar"), stem_of("/a/b.tar")) == ("import /a/b.tar", "b.tar")


def test_times_and_ids_are_what_people_write() -> None:
    assert created_of("1700000000") == created_of("2023-11-14T22:13:20Z") == created_of("2023-11-14 22:13:20")
    assert created_of("-1") == -1
    assert owner_of("3:4") == (3, 4)
    assert owner_of("5") == (5, 5)
    for wrong in ("", "²", "٣", "--1", "yesterday", "1" * 13):
        with pytest.raises(Misuse):
            created_of(wrong)
    for wrong in ("²", "-1", "1" * 13):
        with pytest.raises(InvalidArgument):
            source_date_epoch({"SOURCE_DATE_EPOCH": wrong})
    for wrong in ("", ":", "1:", ":1", "-1", "²", "1:٣", "1" * 11, "1:2:3"):
        with pytest.raises(Misuse):
            owner_of(wrong)


def test_no_path_is_not_the_folder_that_one_is_in(tmp_path: Path) -> None:
    store = Store(FakeStore(f"{tmp_path}/root", f"{tmp_path}/run"))
    with pytest.raises(InvalidArgument, match="empty"):
        store.load("")
