"""The asynchronous classes of `orlop.aio`, written from the synchronous ones: `tools/aio-faces`.

From the source of `orlop.facade`: each public method and property of `orlop.Store` and `orlop.Prepared`, with
its parameters, their types and defaults, and what its docstring says before the examples.  A test compares
what is written with what would be.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
FACADE = TREE / "src/orlop/facade"
AIO = TREE / "src/orlop/aio"
BY_HAND = {"close"}  # what the classes have by hand
FED = {
    ("load", "source"),
    ("write_tar", "data"),
}  # parameters that also take an asynchronous iterable of bytes
UNDONE = {
    "prepare": "lambda root: root.cleanup()",
    "fork": "lambda roots: None if move else _clean(roots)",
}


@dataclass(frozen=True)
class Face:
    """One class that is written: of which one, how it reaches it, and what else stands in it."""

    name: str
    of: str
    inner: str
    module: str
    says: str
    head: str


STORE = Face(
    "AsyncStore",
    "Store",
    "self.sync",
    "store",
    "Images and prepared roots, here or behind a daemon.  An asynchronous context manager, for one loop.\n\n"
    "Its verbs are those of `orlop.Store`, with the same results and the same errors; ``sync`` is that store.\n"
    "docs/asyncio.md says what cancelling does.",
    '''
    def __init__(self, sync: Store, calls: Calls) -> None:
        self.sync = sync
        self._calls = calls

    async def close(self) -> None:
        """Stop what runs, and let go of files, threads and connections.  Prepared roots stay.  Idempotent."""
        await self._calls.close(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
''',
)
PREPARED = Face(
    "AsyncPrepared",
    "Prepared",
    "self.sync",
    "prepared",
    "A prepared root, as `orlop.Prepared`; ``sync`` is that one.\n\n"
    "Leaving an ``async with`` block cleans up, also when the block raised or its task was cancelled.",
    '''
    def __init__(self, sync: Prepared, calls: Calls) -> None:
        self.sync = sync
        self._calls = calls

    @property
    def info(self) -> PreparedInfo:
        """What the store said of it last."""
        return self.sync.info

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._calls.run(lambda inner: self.sync.cleanup(call=inner), steady=True)
''',
)
FACES = (STORE, PREPARED)
_CLEAN = '''

def _clean(roots: list[Prepared]) -> None:
    """Clean up the roots that nobody was there to take."""
    for root in roots:
        root.cleanup()
'''


def path_of(face: Face) -> Path:
    return AIO / f"{face.module}.py"


def written(face: Face) -> str:
    """The module's text, before it is formatted."""
    wanted: dict[str, str] = {}  # name -> the module that has it, of all that annotations say
    parts = [_class_head(face)]
    for module, method in _methods(face.of):
        parts.append(_method(face, module, method))
        wanted |= {name: module.imports[name] for name in _names_of(method, module) if name in module.imports}
    body = "\n".join(parts)
    if "_clean(" in body:
        body += _CLEAN
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    fed = ["AsyncIterable"] if "AsyncIterable" in body else []
    for name, source in (("Calls", "orlop.aio.calls"), ("Pending", "orlop.aio.calls"), ("Self", "typing"),
                         ("AsyncStream", "orlop.aio.streams"), ("AsyncEvents", "orlop.aio.streams"),
                         ("AsyncChunks", "orlop.aio.streams"), ("Prepared", "orlop.facade"),
                         ("Store", "orlop.facade"), ("PreparedInfo", "orlop.images.api"),
                         ("AsyncPrepared", "orlop.aio.prepared")):  # fmt: skip
        if name != face.name and name in used:
            wanted[name] = source
    at_runtime = {"Pending", "AsyncStream", "AsyncEvents", "AsyncChunks"}
    if face is STORE:
        at_runtime.add("AsyncPrepared")
    wanted = {name: source for name, source in wanted.items() if name in used and name not in fed}
    out = [
        f'"""`{face.name}`: the verbs of `orlop.{face.of}`, to be awaited.  Written by tools/aio-faces; not by hand."""',
        "# ruff: noqa: A002 - options have the names they have",
        "from __future__ import annotations",
    ]
    if fed:
        out.append("from collections.abc import AsyncIterable")
    out.append("from typing import TYPE_CHECKING")
    out += [_import(name, wanted.pop(name)) for name in sorted(at_runtime) if name in wanted]
    out.append("if TYPE_CHECKING:")
    if "os" in used:
        out.append("    import os")
    out += ["    " + _import(name, source) for name, source in sorted(wanted.items())]
    out.append(f"__all__ = [{face.name!r}]")
    return "\n".join(out) + "\n\n" + body


def write() -> None:
    """Write all anew, and have ruff format them."""
    for face in FACES:
        path_of(face).write_text(written(face))
    paths = [str(path_of(face)) for face in FACES]
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--quiet", "--select", "I", "--fix", *paths], check=True, cwd=TREE)
    subprocess.run([*ruff, "format", "--quiet", *paths], check=True, cwd=TREE)


def meaning(text: str) -> str:
    """What a module says, whatever its layout: its imports as a set, then all else."""
    tree = ast.parse(text)
    names, rest = set(), []
    for node in tree.body:
        inner = node.body if isinstance(node, ast.If) else [node]
        for one in inner:
            if isinstance(one, ast.ImportFrom):
                names |= {(one.module, alias.name) for alias in one.names}
            elif isinstance(one, ast.Import):
                names |= {(None, alias.name) for alias in one.names}
            else:
                rest.append(ast.dump(one))
    return "\n".join([*map(repr, sorted(names, key=str)), *rest])


# ------------------------------------------------------------------ reading


class _Module:
    """A module of the facade: what its annotations' names mean."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.imports: dict[str, str] = {}
        self.aliases: dict[str, ast.expr] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                where = "typing" if node.module == "orlop.hints" else node.module
                self.imports |= {alias.asname or alias.name: where for alias in node.names}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                self.imports[node.name] = f"orlop.facade.{path.stem}"
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name[0].isupper() and not name.isupper():
                    self.aliases[name] = node.value

    def find(self, name: str) -> ast.ClassDef:
        return next(node for node in self.tree.body if isinstance(node, ast.ClassDef) and node.name == name)

    def spelled(self, annotation: ast.expr) -> str:
        """An annotation without this module's own aliases."""
        return ast.unparse(_Aliases(self.aliases).visit(ast.parse(ast.unparse(annotation), mode="eval").body))


class _Aliases(ast.NodeTransformer):
    def __init__(self, aliases: dict[str, ast.expr]) -> None:
        self.aliases = aliases

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.aliases.get(node.id, node)


def _methods(name: str) -> Iterator[tuple[_Module, ast.FunctionDef]]:
    """The public methods and properties of a class of the facade and its bases: its own first."""
    module = _Module(FACADE / f"{name.lower()}.py")
    found = module.find(name)
    places = [(module, found)]
    for base in found.bases:
        assert isinstance(base, ast.Name)
        where = _Module(FACADE / f"{module.imports[base.id].rpartition('.')[2]}.py")
        places.append((where, where.find(base.id)))
    for where, one in places:
        for node in one.body:
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and node.name not in BY_HAND:
                yield where, node


def _names_of(method: ast.FunctionDef, module: _Module) -> set[str]:
    arguments = [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]
    if method.args.vararg:
        arguments.append(method.args.vararg)
    said = [one.annotation for one in arguments if one.annotation] + [method.returns]
    texts = [module.spelled(annotation) for annotation in said if annotation is not None]
    return set().union(*(_words(text) for text in texts))


def _words(text: str) -> set[str]:
    for sign in "[](),.|:='\"@`":
        text = text.replace(sign, " ")
    return set(text.split())


# ------------------------------------------------------------------ writing


def _import(name: str, module: str) -> str:
    return f"from {module} import {name}"


def _class_head(face: Face) -> str:
    says = textwrap.indent(face.says, "    ").lstrip()
    return f'class {face.name}:\n    """{says}\n    """\n{face.head}'


def _docstring(method: ast.FunctionDef) -> str:
    text = ast.get_docstring(method) or ""
    text = text.partition("\n>>>")[0].rstrip()
    if "\n" not in text:
        return f'        """{text}"""'
    return '        """' + textwrap.indent(text, "        ").lstrip() + '\n        """'


def _signature(method: ast.FunctionDef, module: _Module) -> str:
    arguments = method.args
    out = []
    plain = arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(plain, defaults, strict=True):
        out.append(_argument(argument, default, method, module))
    if arguments.vararg:
        out.append("*" + _argument(arguments.vararg, None, method, module))
    elif arguments.kwonlyargs:
        out.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        out.append(_argument(argument, default, method, module))
    return ", ".join(out)


def _argument(argument: ast.arg, default: ast.expr | None, method: ast.FunctionDef, module: _Module) -> str:
    if argument.annotation is None:
        return argument.arg
    kind = module.spelled(argument.annotation)
    if (method.name, argument.arg) in FED:
        kind += " | AsyncIterable[bytes]"
    return f"{argument.arg}: {kind}" + ("" if default is None else f" = {ast.unparse(default)}")


def _passed(method: ast.FunctionDef) -> str:
    def value(name: str) -> str:
        if name == "call":
            return "inner"
        if (method.name, name) in FED:
            return f"self._calls.feed({name}, inner) if isinstance({name}, AsyncIterable) else {name}"
        return name

    arguments = method.args
    out = [value(argument.arg) for argument in arguments.args[1:]]
    if arguments.vararg:
        out.append("*" + arguments.vararg.arg)
    out += [f"{argument.arg}={value(argument.arg)}" for argument in arguments.kwonlyargs]
    return ", ".join(out)


def _method(face: Face, module: _Module, method: ast.FunctionDef) -> str:
    returns = module.spelled(method.returns) if method.returns else "None"
    says = _docstring(method)
    if any(isinstance(one, ast.Name) and one.id == "property" for one in method.decorator_list):
        return f"    @property\n    def {method.name}(self) -> {returns}:\n{says}\n        return {face.inner}.{method.name}\n"
    signature = _signature(method, module)
    has_call = any(argument.arg == "call" for argument in method.args.kwonlyargs)
    inner = "inner" if has_call or "inner" in _passed(method) else "_"
    work = f"lambda {inner}: {face.inner}.{method.name}({_passed(method)})"
    call = ", call" if has_call else ""
    head, _, item = returns.partition("[")
    if head in {"Generator", "Iterator"}:
        return _plain(
            method, signature, f"AsyncStream[{item}", says, f"return AsyncStream(self._calls, {work}{call})"
        )
    if head == "Chunks":
        return _plain(
            method, signature, f"AsyncChunks[{item}", says, f"return AsyncChunks(self._calls, {work}{call})"
        )
    if head == "EventStream":
        return _plain(method, signature, "AsyncEvents", says,
                      f"return AsyncEvents(self._calls, {work}{call}, follow=follow)")  # fmt: skip
    undo = f", undo={UNDONE[method.name]}" if method.name in UNDONE else ""
    fed = "".join(f", fed=isinstance({name}, AsyncIterable)" for verb, name in FED if verb == method.name)
    run = f"await self._calls.run({work}{call}{undo}{fed})"
    if returns == "Prepared":
        lines = [
            "        async def done() -> AsyncPrepared:",
            f"            return AsyncPrepared({run}, self._calls)",
            "",
            "        return Pending(done())",
        ]
        return _plain(method, signature, "Pending[AsyncPrepared]", says, "\n".join(lines).lstrip())
    if returns in {"list[Prepared]", "list[Self]"}:
        return _plain(method, signature, "list[AsyncPrepared]", says,
                      f"made = {run}\n        return [AsyncPrepared(one, self._calls) for one in made]", is_async=True)  # fmt: skip
    if returns == "Self":
        return _plain(method, signature, "Self", says, f"{run}\n        return self", is_async=True)
    return _plain(
        method, signature, returns, says, f"return {run}" if returns != "None" else run, is_async=True
    )


def _plain(
    method: ast.FunctionDef, signature: str, returns: str, says: str, body: str, *, is_async: bool = False
) -> str:
    word = "async def" if is_async else "def"
    return f"    {word} {method.name}({signature}) -> {returns}:\n{says}\n        {body}\n"


def main() -> int:
    write()
    return 0
