"""Words of Dockerfile instructions: whatever is written, they are read or refused, and quoting is undone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.changed.words import expand, split_words


def quoted(text: str) -> str:
    """A text in double quotes, in which nothing means anything."""
    return '"' + "".join("\\" + char if char in '"\\$' else char for char in text) + '"'


@given(st.text())
def test_what_is_quoted_comes_back(text: str) -> None:
    assert split_words(quoted(text), "x") == [quoted(text)]
    assert expand(quoted(text), {"a": "b"}, "x") == text


@given(st.lists(st.text(), max_size=5))
def test_quoted_words_stay_apart(texts: list[str]) -> None:
    words = split_words("  ".join(map(quoted, texts)), "x")
    assert [expand(word, {}, "x") for word in words] == texts


@given(st.text(alphabet="ab \"'\\${}:-+?1"), st.dictionaries(st.sampled_from("ab1"), st.text(max_size=5)))
def test_anything_is_read_or_refused(text: str, env: dict[str, str]) -> None:
    try:
        for word in split_words(text, "x"):
            expand(word, env, "x")
    except InvalidArgument:
        pass
