"""All checks, and how one is performed: `CHECKS` by name, `perform` to a `Report`.

A check is a function of a `Bench`; its docstring is the property that it checks, and it raises if the
property does not hold.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Literal

from orlop.testing.conformance import changing, life, meaning, reference, system, writing
from orlop.testing.conformance.bench import Bench
from orlop.values import dataclass, field

__all__ = ["CHECKS", "Check", "Report", "perform"]

Check = Callable[[Bench], None]

_MODULES = (life, meaning, changing, writing, system)

CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        *(getattr(module, name) for module in _MODULES for name in module.__all__),
        reference.the_same_change_gives_the_same_layer,
    )
}
"""All checks by name, those of a module in the order of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a check went.

    ``left_out`` names what the mode cannot represent and was not compared, ``detail`` says why a check
    failed, ``facts`` are for comparing reports with one another.
    """

    check: str
    driver: str
    outcome: Literal["passed", "failed"]
    left_out: tuple[str, ...] = ()
    detail: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    def encode(self) -> str:
        """One line of JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"seconds": round(self.seconds, 3)})

    @classmethod
    def decode(cls, line: str) -> Report:
        """The inverse of `encode`."""
        fields = json.loads(line)
        return cls(**{**fields, "left_out": tuple(fields["left_out"])})


def perform(name: str, bench: Bench) -> Report:
    """Perform one check.  What it leaves behind is cleaned up, and a root that cannot be is a failure."""
    begun = time.monotonic()
    detail = _trouble(CHECKS[name], bench)
    left_out, facts = tuple(sorted(bench.left_out)), dict(bench.facts)
    detail += _trouble(Bench.tidy, bench)
    return Report(
        check=name,
        driver=bench.driver,
        outcome="failed" if detail else "passed",
        left_out=left_out,
        detail=detail,
        facts=facts,
        seconds=time.monotonic() - begun,
    )


def _trouble(check: Check, bench: Bench) -> str:
    """What a check raised, in words; nothing if it held."""
    try:
        check(bench)
    except AssertionError as exc:
        return f"{exc}\n{_where(exc)}"
    except Exception:  # noqa: BLE001 - whatever it is, it is this check that failed
        return traceback.format_exc()
    return ""


def _where(exc: AssertionError) -> str:
    frames = traceback.extract_tb(exc.__traceback__)
    return "\n".join(f"  {frame.filename}:{frame.lineno}: {frame.line}" for frame in frames[1:4])
