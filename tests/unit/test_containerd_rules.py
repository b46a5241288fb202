"""What containerd's clients may ask of lists and content: filters, patterns, labels.  No I/O."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.contentstore import rules
from orlop.images.contentstore.api import ContentInfo, WriteStatus
from orlop.images.filters import MAX_FILTER, MAX_FILTERS, MAX_PATTERNS, label_field, parse_filters
from orlop.images.patterns import MAX_PATTERN, Pattern
from orlop.spec.digest import Digest

LABELS = {"containerd.io/gc.root": "now", "a": "", "stage": 'a "b", c', "n": "12", "lines": "1\n2"}


def fields(path):
    if path[0] == "labels":
        return label_field(LABELS, path[1:])
    return {"name": "sha256:abc", "parent": ""}.get(path[0]) if len(path) == 1 else None


# ------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("text", "lets_through"),
    [
        ("", True),
        ("name", True),
        ("other", False),
        ("parent", True),
        ("parent==", None),
        ('parent==""', True),
        ("name==sha256:abc", True),
        ("name == sha256:abc", True),
        ("name==sha256:abcd", False),
        ("name!=sha256:abc", False),
        ("name!=x", True),
        ("other!=x", True),
        ('other!=""', False),
        ('other==""', False),
        ("name,other", False),
        ("name, parent", True),
        ("name ,parent", None),
        ('labels."containerd.io/gc.root"', True),
        ('labels."containerd.io/gc.root"==now', True),
        ("labels.containerd.io", False),
        ("labels.a", True),
        ("labels.b", False),
        ("labels", False),
        ('labels.stage=="a \\"b\\", c"', True),
        ('labels.stage==a "b"', None),
        ("labels.n~=^[0-9]+$", True),
        ("labels.n~=/^[0-9]{2}$/", True),
        ("labels.n~=|^\\d\\d$|", True),
        ("labels.n==|12|", None),
        ("labels.n==/12/", None),
        ("labels.lines~=/^2$/", False),
        ("labels.lines~=/(?m)^2$/", True),
        ("labels.b~=^$", True),
        ('name~="\\x61bc"', True),
        ('name~="\\u0061bc"', True),
        ('name=="sha256:\\141bc"', True),
        ("name~=/sha256\\/abc/", False),
        ("name===x", None),
        ("name=x", None),
        ("name@=x", None),
        ("name==x y", None),
        ('name=="x', None),
        ('"name"==sha256:abc', True),
        ("name.", None),
        (".name", None),
        ("name,,name", None),
        ("name,", None),
        ("==x", None),
        ('name=="\\q"', None),
        ('name=="\\ud800"', None),
        ("näme", None),
        ("name~=(", None),
    ],
)
def test_a_filter_means_what_it_means_to_containerd(text, lets_through):
    if lets_through is None:
        with pytest.raises(InvalidArgument, match=r"not a (filter|pattern)"):
            parse_filters([text], "list")
    else:
        assert parse_filters([text], "list").matches(fields) is lets_through


def test_of_several_filters_one_is_enough_and_none_lets_everything_through():
    assert parse_filters([], "list").matches(fields)
    assert parse_filters(["other", "name"], "list").matches(fields)
    assert not parse_filters(["other", "name==x"], "list").matches(fields)
    assert parse_filters([], "list").everything
    assert parse_filters(["other", ""], "list").everything
    assert not parse_filters(["name"], "list").everything


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_is_refused(text):
    try:
        found = parse_filters([text], "list")
    except InvalidArgument:
        return
    assert found.matches(fields) in (True, False)


@given(st.text(max_size=40))
def test_a_quoted_value_is_taken_as_it_is(value):
    quoted = "".join(f"\\U{ord(char):08x}" for char in value if not 0xD800 <= ord(char) < 0xE000)
    plain = "".join(char for char in value if not 0xD800 <= ord(char) < 0xE000)
    one = parse_filters([f'name=="{quoted}"'], "list")
    assert one.matches(lambda path: plain)


def test_filters_have_bounds():
    with pytest.raises(InvalidArgument, match="there are"):
        parse_filters(["name"] * (MAX_FILTERS + 1), "list")
    with pytest.raises(InvalidArgument, match="characters"):
        parse_filters(["n" * (MAX_FILTER + 1)], "list")
    with pytest.raises(InvalidArgument, match="characters"):
        parse_filters(["name~=" + "x" * (MAX_PATTERN + 1)], "list")
    parse_filters(["name~=x,name~=y"] * (MAX_PATTERNS // 2), "list")
    with pytest.raises(InvalidArgument, match="patterns"):
        parse_filters(["name~=x,name~=y"] * (MAX_PATTERNS // 2) + ["name~=z"], "list")


# ------------------------------------------------------------------ patterns

_ATOMS = ("a", "b", ".", "[ab]", "[^a]", "\\d", "\\w", "\\.", "^", "$", "\\b", "(a|b)", "(?:ab)", "\\n")


@given(
    st.lists(
        st.tuples(st.sampled_from(_ATOMS), st.sampled_from(("", "*", "+", "?", "{2}", "{1,3}"))), max_size=6
    ),
    st.text("ab.1\n", max_size=12),
)
def test_patterns_find_what_pythons_own_find(parts, text):
    pattern = "".join(atom if atom in ("^", "$", "\\b") else atom + repeat for atom, repeat in parts)
    # Go's $ is only the very end, Python's also before a last line's end.
    expected = re.search(pattern.replace("$", "\\Z"), text) is not None
    assert Pattern(pattern, "list").search(text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("(?i)ABC", "xabcx", True),
        ("(?i:A)b", "ab", True),
        ("(?i:A)b", "aB", False),
        ("a(?i)b", "aB", True),
        ("(?s)a.b", "a\nb", True),
        ("a.b", "a\nb", False),
        ("(?P<word>a+)b", "caab", True),
        ("[[:digit:]]{3}", "a123", True),
        ("[[:^digit:]]", "123", False),
        ("[]a]", "]", True),
        ("[a-]", "-", True),
        ("[\\]x]", "]", True),
        ("\\Qa.b\\E+", "a.bb", True),
        ("\\x41\\x{42}\\103", "ABC", True),
        ("\\Aa\\z", "a", True),
        ("x{,2}", "x{,2}", True),
        ("a||b", "", True),
        ("()", "", True),
        ("a*?b", "aab", True),
        ("^(((((a{0}){1000}){1000}){1000}){1000}){1000}b", "b", True),  # at once
        ("^((((){999}){999}){999}){999}b", "ab", False),
    ],
)
def test_patterns_are_those_of_go(pattern, text, found):
    assert Pattern(pattern, "list").search(text) is found


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(",
            ")",
            "[",
            "a**",
            "*a",
            "a{2}{3}",
            "a{1001}",
            "a{3,2}",
            "[b-a]",
            "\\1",
            "\\k",
            "\\",
            "(?=a)",
            "(?z)",
        ),
        *(
            "(?<n",
            "\\x",
            "\\x{110000}",
            "[[:none:]]",
            "(" * 60 + ")" * 60,
            "(a{1000}){1000}",
            "((a{100}){100})",
        ),
    ],
)
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(InvalidArgument, match="pattern"):
        Pattern(pattern, "list")


def test_no_pattern_tracks_back():
    text = "a" * 400
    for pattern in ("(a+)+$", "(a|a)*b", "(a*)*b", "(.*)*x", "a?" * 30 + "a" * 30 + "b"):
        assert not Pattern(pattern, "list").search(text + "c")


# ------------------------------------------------------------------ rules of content


@pytest.mark.parametrize("namespace", ["default", "k8s.io", "a-b_c.d", "A1", "x" * 76, None])
def test_namespaces_are_containerds(namespace):
    rules.check_namespace(namespace, "list")


@pytest.mark.parametrize("namespace", ["", ".", "a..b", "-a", "a/b", "../x", "a\n", "ä", "x" * 77, "a b"])
def test_what_is_no_namespace_is_refused(namespace):
    with pytest.raises(InvalidArgument, match="not a namespace"):
        rules.check_namespace(namespace, "list")


@pytest.mark.parametrize("ref", ["", "a\0b", "x" * 4_097, "\ud800"])
def test_what_names_no_write_is_refused(ref):
    with pytest.raises(InvalidArgument):
        rules.check_ref(ref, "write")


@pytest.mark.hostile(26)
def test_labels_have_bounds_and_those_without_a_value_are_none():
    assert rules.check_labels({"a": "1", "b": ""}, "update") == {"a": "1"}
    rules.check_labels({"k" * 96: "v" * 4_000}, "update")
    for labels in ({"k" * 97: "v" * 4_000}, {"": "v"}, {f"k{n}": "v" for n in range(1_025)}):
        with pytest.raises(InvalidArgument):
            rules.check_labels(labels, "update")


def test_an_update_changes_the_labels_that_it_names():
    old = {"a": "1", "b": "2"}
    assert rules.merged(old, {"c": "3"}, [], "update") == {"c": "3"}
    assert rules.merged(old, {"c": "3"}, ["labels"], "update") == {"c": "3"}
    assert rules.merged(old, {"a": "9", "b": "9"}, ["labels.a"], "update") == {"a": "9", "b": "2"}
    assert rules.merged(old, {}, ["labels.a"], "update") == {"b": "2"}
    dotted = "containerd.io/gc.ref.content.l.0"
    assert rules.merged({}, {dotted: "x"}, [f"labels.{dotted}"], "update") == {dotted: "x"}
    for path in ("size", "digest", "labels.", "label", "", "created_at"):
        with pytest.raises(InvalidArgument, match="cannot be changed"):
            rules.merged(old, {}, [path], "update")


def test_what_is_isolated_is_shared_by_the_namespaces_that_say_so_alone():
    def shared(sharing, shareable, *, there, holders):
        return rules.is_shared(
            sharing,
            shareable,
            is_there=lambda: there,
            is_in_one_of=lambda names: bool(holders & set(names)),
        )

    assert shared("shared", (), there=True, holders=set())
    assert not shared("shared", ("a",), there=False, holders=set())
    assert not shared("isolated", (), there=True, holders={"a"})
    assert not shared("isolated", ("b",), there=True, holders={"a"})
    assert shared("isolated", ("a", "b"), there=True, holders={"a"})


def test_filters_see_digest_size_and_labels_of_blobs_and_the_ref_of_writes():
    digest = Digest.of(b"x")
    blob = rules.content_fields(ContentInfo(digest=digest, size=1, labels={"a.b": "c"}, created=0, updated=0))
    for text in (f"digest=={digest}", "size==1", "labels.a.b==c", 'labels."a.b"~=c'):
        assert parse_filters([text], "list").matches(blob)
    assert not parse_filters(["ref"], "list").matches(blob)
    write = rules.status_fields(
        WriteStatus(ref="layer-1", offset=0, total=0, expected=None, started=0, updated=0)
    )
    assert parse_filters(["ref~=^layer-"], "list").matches(write)
    assert not parse_filters(["digest"], "list").matches(write)
