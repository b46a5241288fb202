"""PAX records."""

from __future__ import annotations

import base64
import contextlib
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.layers import pax

KEYS = st.binary(min_size=1, max_size=40).filter(
    lambda key: b"=" not in key and key not in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}
)
SECOND = 1_000_000_000


def parse(data: bytes, into: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    records = {} if into is None else into
    pax.parse(data, records, [], DEFAULT_LIMITS)
    return records


@given(st.dictionaries(KEYS, st.binary(max_size=2000), max_size=20))
def test_records_survive_a_round_trip(records: dict[bytes, bytes]) -> None:
    assert parse(b"".join(pax.record(key, value) for key, value in records.items())) == records


@pytest.mark.parametrize("length", [*range(1, 13), *range(85, 105), *range(980, 1010)])
def test_a_length_counts_itself(length: int) -> None:
    record = pax.record(b"k", b"v" * length)
    assert int(record.split(b" ")[0]) == len(record)


def test_a_later_record_speaks_over_an_earlier_one() -> None:
    assert parse(pax.record(b"uid", b"1") + pax.record(b"uid", b"2")) == {b"uid": b"2"}


def test_an_empty_value_takes_a_global_record_away() -> None:
    records = {b"path": b"x", b"uid": b"1"}
    pax.parse(pax.record(b"path", b""), records, None, DEFAULT_LIMITS)
    assert records == {b"uid": b"1"}


def test_the_repeated_keys_of_a_sparse_map_keep_their_order() -> None:
    keys = [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"5"), (b"GNU.sparse.offset", b"9")]
    sparse: list[bytes] = []
    pax.parse(b"".join(pax.record(*pair) for pair in keys), {}, sparse, DEFAULT_LIMITS)
    assert sparse == [b"0", b"5", b"9"]


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"5 a=b",  # no newline
        b"6 a=b\nrest",
        b"7 a=b\n",  # too long
        b"5 a=b\n",  # too short
        b"0 a=b\n",
        b"-6 a=b\n",
        b" 6 a=b\n",
        b"2 \n",
        b"4 ab\n",
        b"5 =b\n",
        b"99999999999 a=b\n",
        b"9999999999 a=b\n",
        b"6 a=b\n\0\0\0",
        "٦ a=b\n".encode(),
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        parse(data)


def test_the_number_of_records_is_limited() -> None:
    with pytest.raises(ResourceExhausted, match="xattr_count"):
        parse(
            b"".join(
                pax.record(b"SCHILY.xattr.user.%d" % n, b"")
                for n in range(2 * DEFAULT_LIMITS.xattr_count + 100)
            )
        )


@given(st.integers(-(1 << 62) * SECOND, (1 << 62) * SECOND))
def test_times_are_exact_to_the_nanosecond(nanoseconds: int) -> None:
    sign = "-" if nanoseconds < 0 else ""
    text = f"{sign}{abs(nanoseconds) // SECOND}.{abs(nanoseconds) % SECOND:09d}"
    seconds, nsec = pax.time(text.encode())
    assert (seconds * SECOND + nsec, 0 <= nsec < SECOND) == (nanoseconds, True)


@given(st.from_regex(r"\A-?[0-9]{1,18}(\.[0-9]{0,15})?\Z"))
def test_finer_times_are_cut_off_towards_the_past(text: str) -> None:
    seconds, nsec = pax.time(text.encode())
    assert seconds * SECOND + nsec == floor(Fraction(text.rstrip(".")) * SECOND)


@pytest.mark.parametrize(
    "text", ["", ".5", "1e5", "+1", "1,5", " 1", "--1", "1.-5", "99999999999999999999", "nan"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        pax.time(text.encode())


@pytest.mark.parametrize("text", [b"", b"-1", b"1.0", b"0x1", b" 1", b"1" * 21, "٣".encode()])
def test_what_is_no_number_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument):
        pax.number(text, "size")


# ------------------------------------------------------------------ xattrs


def test_xattrs_come_in_the_forms_of_gnu_tar_and_libarchive() -> None:
    records = {
        b"SCHILY.xattr.user.b%3D%25": b"\0\xff",
        b"LIBARCHIVE.xattr.user.a%20%41": base64.b64encode(b"value").rstrip(b"="),
        b"SCHILY.xattr.user.both": b"raw",
        b"LIBARCHIVE.xattr.user.both": base64.b64encode(b"coded"),
        b"uid": b"5",
    }
    assert pax.xattrs(records, DEFAULT_LIMITS) == (
        (b"user.a A", b"value"),
        (b"user.b=%", b"\0\xff"),
        (b"user.both", b"raw"),
    )


@pytest.mark.parametrize(
    "key",
    [b"SCHILY.xattr.", b"SCHILY.xattr.user.\0", b"SCHILY.xattr." + b"x" * 256, b"LIBARCHIVE.xattr.%00"],
)
def test_what_is_no_name_of_an_xattr_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidArgument):
        pax.xattrs({key: b"dmFsdWU="}, DEFAULT_LIMITS)


@pytest.mark.parametrize("value", [b"a", b"a*b=", b"=", "ä".encode()])
def test_what_is_no_base64_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        pax.xattrs({b"LIBARCHIVE.xattr.user.a": value}, DEFAULT_LIMITS)
