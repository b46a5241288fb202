"""The verbs of `orlop.images.comparing`, done in this process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing

from orlop.errors import InvalidArgument, NotFound
from orlop.hints import TYPE_CHECKING
from orlop.images.browsing.verbs import streaming
from orlop.images.parts import Parts, verb
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.browsing.nodes import Tree
    from orlop.images.comparing import Blame, Difference, HistoryLine, TreeLine, Waste

__all__ = ["ComparingVerbs"]

_CALL = Call()


class ComparingVerbs(Parts):
    """Comparing things, and asking where what is in them came from.  Thread-safe."""

    @streaming("compare")
    def diff(
        self,
        old: str,
        new: str | None = None,
        *,
        path: bytes = b"",
        times: bool = True,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[Difference]:
        """See `orlop.images.comparing.Comparing.diff`."""
        from orlop.images.browsing.diff import compare
        from orlop.images.browsing.verbs import info_of
        from orlop.images.comparing import Difference

        what = f"compare {old}" + (f" with {new}" if new is not None else "")
        with ExitStack() as opened:
            before, after = self._trees(old, new, what, platform, opened, call)
            node = after.lookup(path, follow=False)
            other = before.lookup(node.path if node is not None else path, follow=False)
            if node is None and other is None:
                raise NotFound(what, f"neither has /{_shown(path)}")
            for pair in compare(before, after, other, node, times=times):
                yield Difference(
                    path=pair.path,
                    what=pair.what,
                    fields=pair.fields,
                    old=info_of(pair.old) if pair.old is not None else None,
                    new=info_of(pair.new) if pair.new is not None else None,
                )

    def _trees(
        self, old: str, new: str | None, what: str, platform: str | None, opened: ExitStack, call: Call
    ) -> tuple[Tree, Tree]:
        from orlop.images.browsing.nodes import Tree
        from orlop.images.browsing.trees import find_source, open_tree

        core, chains, grounds = self._core, self._chains, self._grounds
        source = find_source(core, old, what, platform=platform)
        if new is not None:
            other = find_source(core, new, what, platform=platform)
            before = opened.enter_context(open_tree(core, chains, grounds, source, call))
            return before, opened.enter_context(open_tree(core, chains, grounds, other, call))
        if source.root is None:
            raise InvalidArgument(
                what,
                f"only a prepared root can stand alone, not {'an image' if source.config else 'a layer'}",
                hint="name what to compare it with, too: orlop diff OLD NEW",
            )
        after = opened.enter_context(open_tree(core, chains, grounds, source, call))
        before = Tree(after.view, after.devices, call=call)  # the same chain, so nothing is compared twice
        return opened.enter_context(closing(before)), after

    @verb("blame")
    def blame(self, thing: str, path: bytes, *, platform: str | None = None, call: Call = _CALL) -> Blame:
        """See `orlop.images.comparing.Comparing.blame`."""
        from orlop.images.browsing.blame import blame

        return blame(self._core, self._chains, self._grounds, thing, path, platform=platform, call=call)

    @verb("read history of")
    def history(self, thing: str, *, platform: str | None = None, call: Call = _CALL) -> list[HistoryLine]:
        """See `orlop.images.comparing.Comparing.history`."""
        from orlop.images.browsing.history import history_of
        from orlop.images.browsing.trees import find_source

        what = f"read history of {thing}"
        return history_of(self._core, find_source(self._core, thing, what, platform=platform), what)

    @streaming("list")
    def tree(
        self,
        thing: str,
        path: bytes = b"",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[TreeLine]:
        """See `orlop.images.comparing.Comparing.tree`."""
        from orlop.images.browsing.sizes import tree_lines
        from orlop.images.browsing.trees import find_source, open_tree
        from orlop.layers.origins import origins

        what = f"list {thing} /{_shown(path)}"
        if depth is not None and depth < 0:
            raise InvalidArgument(what, f"a depth of {depth}")
        core = self._core
        source = find_source(core, thing, what, platform=platform)
        merged = None
        if layers:
            merged = origins((core.layers.load_index(diff_id) for diff_id in source.diff_ids), call=call)
        with open_tree(core, self._chains, self._grounds, source, call) as tree:
            yield from tree_lines(tree, tree.require(path, what), depth, merged)

    @verb("measure waste of")
    def waste(self, thing: str, *, files: int = 10, platform: str | None = None, call: Call = _CALL) -> Waste:
        """See `orlop.images.comparing.Comparing.waste`."""
        from orlop.images.browsing.trees import find_source
        from orlop.images.browsing.waste import waste_of

        what = f"measure waste of {thing}"
        if files < 0:
            raise InvalidArgument(what, f"the largest {files} files")
        source = find_source(self._core, thing, what, platform=platform)
        return waste_of(self._core, source, files, what, call)


def _shown(path: bytes) -> str:
    return path.strip(b"/").decode(errors="backslashreplace")
