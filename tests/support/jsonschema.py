"""Enough of JSON Schema (draft 4) for the runtime-spec's own: does a document keep to it?

complaints = Schema(folder, "config-schema.json").complaints(document)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {
    *("$schema", "$ref", "id", "description", "definitions", "type", "properties", "required", "items"),
    *("allOf", "anyOf", "enum", "pattern", "patternProperties", "additionalProperties"),
    *("minimum", "maximum", "minItems", "title"),
}


class Schema:
    """A schema in a file, with those that it refers to in the same folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._files: dict[str, Any] = {}

    def complaints(self, document: object) -> list[str]:
        """Where the document breaks it, and how."""
        return list(self._check(document, self._file(self._name), self._name, "$"))

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = json.loads((self._folder / name).read_text())
        return self._files[name]

    def _refer(self, reference: str, here: str) -> tuple[Any, str]:
        name, _, path = reference.partition("#")
        name = name or here
        found = self._file(name)
        for part in filter(None, path.split("/")):
            found = found[part]
        return found, name

    def _check(self, value: Any, schema: Any, here: str, where: str) -> Iterator[str]:
        unknown = set(schema) - KNOWN
        # The files' own top level has its fields beside the schema of some.
        assert where != "$" or not unknown, unknown
        if "$ref" in schema:
            referred, name = self._refer(schema["$ref"], here)
            yield from self._check(value, referred, name, where)
            return
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        allowed = tuple(kind for name in kinds for kind in _TYPES[name])
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            yield f"{where}: {value!r} is no {kinds}"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"
        if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} is not as {schema['pattern']}"
        if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get(
            "maximum", value
        ):
            yield f"{where}: {value} is out of range"
        for part in schema.get("allOf", []):
            yield from self._check(value, part, here, where)
        if "anyOf" in schema and all(list(self._check(value, s, here, where)) for s in schema["anyOf"]):
            yield f"{where}: {value!r} is none of what it may be"
        if isinstance(value, list):
            if len(value) < schema.get("minItems", 0):
                yield f"{where}: too short"
            for number, item in enumerate(value):
                yield from self._check(item, schema.get("items", {}), here, f"{where}[{number}]")
        if isinstance(value, dict):
            yield from self._object(value, schema, here, where)

    def _object(self, value: dict[str, Any], schema: Any, here: str, where: str) -> Iterator[str]:
        yield from (f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value)
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, item in value.items():
            if name in known:
                yield from self._check(item, known[name], here, f"{where}.{name}")
            for pattern, part in patterns.items():
                if re.search(pattern, name):
                    yield from self._check(item, part, here, f"{where}.{name}")
