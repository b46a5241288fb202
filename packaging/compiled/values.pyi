"""What mypyc is told of `orlop.values` while it compiles.

To a type checker its `dataclass` *is* the one of the standard library, and so mypyc would make a native class
of each value and let that one finish it.  As a decorator like any other it is called at run time, on a plain
class.
"""

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")

def field(
    *,
    default: Any = ...,
    default_factory: Any = ...,
    init: bool = ...,
    repr: bool = ...,
    compare: bool = ...,
    metadata: Any = ...,
) -> Any: ...
@dataclass_transform(field_specifiers=(field,))
def dataclass(
    *, slots: bool, frozen: bool = ..., kw_only: bool = ..., eq: bool = ...
) -> Callable[[type[_T]], type[_T]]: ...
def fields(value: Any) -> tuple[Any, ...]: ...
def is_dataclass(value: Any) -> bool: ...
def replace(value: _T, /, **changes: Any) -> _T: ...
def asdict(value: Any) -> dict[str, Any]: ...
