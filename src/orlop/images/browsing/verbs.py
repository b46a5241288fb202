"""The verbs of `orlop.images.contents`, done in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import wraps

from orlop.errors import InvalidArgument, from_oserror
from orlop.hints import TYPE_CHECKING, ParamSpec, TypeVar
from orlop.images.parts import Parts, verb
from orlop.observe import Call

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from orlop.images.browsing.nodes import Node, Tree
    from orlop.images.contents import FileInfo, FindOptions, Found

__all__ = ["ContentVerbs", "info_of", "streaming"]

_CALL = Call()
_P = ParamSpec("_P")
_R = TypeVar("_R")


def streaming(name: str) -> Callable[[Callable[_P, Generator[_R]]], Callable[_P, Generator[_R]]]:
    """As `orlop.images.parts.verb`, for a generator: what it raises while it is read leaves as an error."""

    def decorate(function: Callable[_P, Generator[_R]]) -> Callable[_P, Generator[_R]]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> Generator[_R]:
            try:
                yield from function(*args, **kwargs)
            except OSError as exc:
                raise from_oserror(" ".join([name, *(str(arg) for arg in args[1:2])]), exc) from exc

        return call

    return decorate


def info_of(node: Node) -> FileInfo:
    """A node as a value."""
    return node.info()


class ContentVerbs(Parts):
    """Looking into things.  Thread-safe."""

    def _tree(
        self, thing: str, platform: str | None, call: Call, *, keep: bool = False
    ) -> AbstractContextManager[Tree]:
        from orlop.images.browsing.trees import open_tree  # late: a store is opened for other verbs, too

        grounds = self._grounds
        return open_tree(self._core, self._chains, grounds, thing, call, platform=platform, keep=keep)

    @streaming("list")
    def list_files(
        self,
        thing: str,
        path: bytes = b"",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[FileInfo]:
        """See `orlop.images.contents.Contents.list_files`."""
        with self._tree(thing, platform, call) as tree:
            what = f"list {thing} /{_text(path)}"
            node = tree.require(path, what, follow=False)
            if node.is_link and not itself:
                led = tree.lookup(path)
                node = led if led is not None and led.is_folder else node
            if itself or not node.is_folder:
                yield node.info()
                return
            below = tree.walk(node) if recursive else tree.children(node)
            for found in below:
                if found.path != node.path:
                    yield found.info()

    @streaming("read")
    def read_files(
        self, thing: str, paths: Sequence[bytes], *, platform: str | None = None, call: Call = _CALL
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_files`."""
        with self._tree(thing, platform, call) as tree:
            nodes = [_regular(tree, path, thing) for path in paths]
            for node in nodes:
                yield from tree.chunks(node)

    @streaming("look for files in")
    def find_files(
        self, thing: str | None, pattern: bytes, *, options: FindOptions | None = None, call: Call = _CALL
    ) -> Generator[Found]:
        """See `orlop.images.contents.Contents.find_files`."""
        from orlop.images.browsing.find import Finder, Wanted
        from orlop.images.browsing.globs import Glob
        from orlop.images.contents import FindOptions

        options = options or FindOptions()
        wanted = Wanted(
            glob=Glob(pattern), kinds=frozenset(options.kinds), least=options.least, most=options.most
        )
        finder = Finder(self._core, self._chains, self._grounds, wanted, call)
        if thing is not None:
            yield from finder.one(thing, platform=options.platform)
            return
        if options.platform is not None:
            raise InvalidArgument("look for files", "a platform is for one image", hint="leave it out")
        yield from finder.every()

    @streaming("copy from")
    def read_archive(
        self,
        thing: str,
        path: bytes,
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_archive`."""
        from orlop.images.browsing.archive import tar_of, top_name

        with self._tree(thing, platform, call, keep=True) as tree:
            node = tree.require(path, f"copy from {thing}", follow=follow)
            yield from tar_of(tree, node, top_name(path, node))

    @verb("copy into")
    def write_archive(
        self,
        root: str,
        path: bytes,
        data: Iterable[bytes],
        *,
        archive: bool = False,
        content: bool = False,
        call: Call = _CALL,
    ) -> None:
        """See `orlop.images.contents.Contents.write_archive`."""
        from orlop.images.browsing.intoroot import write_into

        write_into(
            self._core,
            self._grounds,
            root,
            path,
            data,
            archive=archive,
            content=content,
            call=call,
        )


def _regular(tree: Tree, path: bytes, thing: str) -> Node:
    what = f"read {thing} /{_text(path)}"
    node = tree.require(path, what)
    if node.is_folder:
        raise InvalidArgument(what, "it is a folder", hint="'orlop ls' lists it, 'orlop cp' copies it")
    if not node.is_file:
        from orlop.images.contents import kind_of

        raise InvalidArgument(what, f"it is no regular file but a {kind_of(node.mode)}")
    return node


def _text(path: bytes) -> str:
    """A path for people."""
    return path.strip(b"/").decode(errors="backslashreplace")
