"""Templates of ``--format``: ``{{.name}}``, as docker's and podman's users write them.

A field is one of the JSON's, and may be a field of a field (``{{.config.config.Env}}``); its case does not
count, and ``CreatedBy`` is ``created_by``.  ``{{.}}`` is the whole, ``{{json .labels}}`` a field as JSON.
Nothing else of Go's templates is known: what is asked for and not there is an error, never an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlop.cli.exits import one_line
from orlop.errors import InvalidArgument
from orlop.hints import Any

__all__ = ["TABLE", "check", "fill", "is_template", "titles"]

TABLE = "table "  # before a template: lined up at its tabs, with a heading, as docker has it
_FIELD = re.compile(r"\{\{\s*(?:(json)\s+)?\.([A-Za-z_][\w./:+@-]*|)\s*\}\}")
_ACTION = re.compile(r"\{\{.*?\}\}")


def is_template(form: str) -> bool:
    """Whether it is one, and no word for a form."""
    return "{{" in form


def check(template: str) -> None:
    """Raise `InvalidArgument` for what these templates do not know."""
    if "{{" in _ACTION.sub("", template):
        raise InvalidArgument(f"use format {template!r}", "{{ without }}", hint="write {{.field}}")
    for match in _ACTION.finditer(template):
        if _FIELD.fullmatch(match[0]) is None:
            raise InvalidArgument(
                f"use format {template!r}",
                f"{match[0]} is not known",
                hint="write {{.field}}, {{json .field}} or {{.}}; jq reads the output of --json",
            )


def titles(template: str) -> str:
    """The heading of a table that is a template."""
    name = _FIELD.sub(
        lambda match: (match[2].rpartition(".")[2] or "value").replace("_", " ").upper(), template
    )
    return _escapes(name)


def fill(template: str, record: object) -> str:
    """The template with the fields of a record (what JSON has of it).

    Raises `InvalidArgument` for a field that is not there, and names those that are.
    """
    import json

    check(template)

    def replace(match: re.Match[str]) -> str:
        value = _find(record, match[2], template)
        if isinstance(value, str) and not match[1]:
            return one_line(value)
        return "" if value is None and not match[1] else json.dumps(value)

    return _FIELD.sub(replace, _escapes(template))


def _escapes(template: str) -> str:
    return template.replace("\\t", "\t").replace("\\n", "\n")


def _find(record: object, path: str, template: str) -> Any:  # noqa: ANN401 - JSON's values
    """A field by its path; keys with dots in them (labels) are found as well."""
    value: Any = record
    while path:
        if value is None:  # a field of what is not there
            return None
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"use format {template!r}", f"no field {path!r}", hint="{{.}} is all of it")
        first, _, rest = path.partition(".")
        whole, part = _key(value, path), _key(value, first)
        if whole is not None:
            return value[whole]
        if part is None:
            names = [str(name) for name in value]
            raise InvalidArgument(
                f"use format {template!r}", f"no field {first!r}", hint=_fields(first, names)
            )
        value, path = value[part], rest
    return value


def _key(record: Mapping[str, object], name: str) -> str | None:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return next((key for key in (name, name.lower(), snake) if key in record), None)


def _fields(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    meant = get_close_matches(name.lower(), names, n=1)
    return f"the fields are {', '.join(names)}" + (f"; did you mean {meant[0]}?" if meant else "")
