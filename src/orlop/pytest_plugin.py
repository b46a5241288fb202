"""Roots of images for tests: the fixture ``orlop_root``, a root of its own for each test, in milliseconds.

::

    @pytest.mark.orlop(image="python:3.12-slim")
    def test_it(orlop_root):
        assert orlop_root.run(["python3", "--version"]).code == 0

Fixtures: ``orlop_store``, one store for the session; ``orlop_root``, a root for the test; ``orlop_roots``, a
function that makes more.  What `pytest_orlop_setup` or the mark's ``setup`` does is done once for an
image, and each test gets a fork.  docs/pytest.md tells more.

Installed with orlop, so loaded by every pytest beside it: at that time nothing is imported but pytest.

Invariants: what a test got is cleaned up when it ends, however it ends.  The store is the one that was named,
or the user's, with the configuration that the command line has; with xdist all workers share it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import orlop

__all__ = ["MARK", "OrlopRoot", "OrlopSpec"]

MARK = "orlop"
_OPTIONS = (
    ("image", "the image of roots whose test names none"),
    ("store", "the folder of the store (default: the user's own)"),
    ("run", "the folder of its mount points (default: the user's own)"),
    ("driver", "how roots are assembled: auto, erofs, overlay, native"),
    ("pull", "when images are fetched: missing, always, never"),
    ("insecure", "registries that are spoken to without TLS, separated by commas"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--orlop-image`` and others, each also of the ini file (``orlop_image``)."""
    group = parser.getgroup("orlop", "roots of container images")
    for name, about in _OPTIONS:
        group.addoption(
            f"--orlop-{name}", dest=f"orlop_{name}", default=None, metavar=name.upper(), help=about
        )
        parser.addini(f"orlop_{name}", about, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "orlop(image, view=False, driver=None, mount=None, quota=None, setup=None, platform=None):"
        " what the test's orlop_root is",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make `pytest_orlop_setup` known."""
    pluginmanager.add_hookspecs(_Hooks)


class _Hooks:
    """The hooks of this plugin."""

    @pytest.hookspec
    def pytest_orlop_setup(self, root: OrlopRoot, image: str) -> None:
        """Change a root once, as all tests of its image are to find it: install, write, warm up.

        Called once for each image and session (of each xdist worker); what was written is captured, and
        the tests' roots are forks.
        """


def _option(config: pytest.Config, name: str) -> str:
    given = config.getoption(f"orlop_{name}")
    return str(given if given is not None else config.getini(f"orlop_{name}"))


# ------------------------------------------------------------------ what tests are given


class OrlopSpec:
    """What a root is to be: the arguments of the mark, over the options."""

    def __init__(self, request: pytest.FixtureRequest, words: dict[str, Any]) -> None:
        config = request.config
        unknown = words.keys() - {"image", "view", "driver", "mount", "quota", "setup", "platform"}
        if unknown:
            raise pytest.UsageError(f"the mark orlop has no {', '.join(sorted(unknown))}")
        self.image: str = words.get("image") or _option(config, "image")
        self.view = bool(words.get("view", False))
        self.driver: Any = words.get("driver")
        self.mount: bool | None = words.get("mount")
        self.quota: int | None = words.get("quota")
        self.platform: str | None = words.get("platform")
        self.setup: Callable[[OrlopRoot], object] | None = words.get("setup")
        self.hook = request.node.ihook.pytest_orlop_setup  # of the conftest.py files above the test alone
        if not self.image:
            raise pytest.UsageError(
                "orlop_root needs an image: @pytest.mark.orlop(image=…), --orlop-image,"
                " or orlop_image in the ini file"
            )


class OrlopRoot:
    """A root that a test may use as it likes: `path` is its tree, `prepared` the library's handle."""

    def __init__(self, prepared: orlop.Prepared) -> None:
        self.prepared = prepared

    @property
    def path(self) -> Path:
        """Where the files are."""
        from pathlib import Path

        prepared = self.prepared
        return Path(prepared.path if prepared.info.mounted else prepared.folder or prepared.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        """A path in the root: ``root / "etc/motd"``.  Symlinks of it lead where they lead on this machine."""
        return self.path / os.fspath(name).lstrip("/")

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"<OrlopRoot of {self.prepared.info.image} at {self.path}>"

    def run(self, args: Sequence[str], **options: Any) -> orlop.Ran:  # noqa: ANN401 - Prepared.run's
        """Run a program in the root: see `orlop.Prepared.run`, whose options these are."""
        return self.prepared.run(args, **options)

    def check(self, args: Sequence[str], **options: Any) -> str:  # noqa: ANN401 - Prepared.run's
        """What a program prints; the test fails unless it exits with 0."""
        __tracebackhide__ = True
        ran = self.run(args, **options)
        if ran.code:
            pytest.fail(f"{' '.join(args)} exits with {ran.code}:\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def changed(self) -> dict[str, str]:
        """What differs from the image: each path, with ``added``, ``changed`` or ``deleted``."""
        from contextlib import closing

        with closing(self.prepared.diff()) as found:
            return {"/" + os.fsdecode(one.path): one.what for one in found}


class _Maker:
    """Makes roots, and takes all of them away."""

    def __init__(self, store: orlop.Store, folder: Path, config: pytest.Config) -> None:
        self._store = store
        self._folder = folder
        self._config = config
        self._made: list[orlop.Prepared] = []
        self._bases: dict[object, OrlopRoot] = {}
        self._number = 0

    def path(self) -> str:
        self._number += 1
        return str(self._folder / str(self._number))

    def base(self, spec: OrlopSpec) -> OrlopRoot | None:
        """The root that the tests' ones are forks of; None where nothing is set up."""
        hooks = tuple(hook.function for hook in spec.hook.get_hookimpls())
        if spec.setup is None and not hooks:
            return None
        key = (spec.image, spec.platform, spec.driver, spec.mount, spec.quota, spec.setup, hooks)
        if key not in self._bases:
            root = self.prepare(spec)
            spec.hook(root=root, image=spec.image)
            if spec.setup is not None:
                spec.setup(root)
            self._bases[key] = root
        return self._bases[key]

    def prepare(self, spec: OrlopSpec) -> OrlopRoot:
        from orlop.errors import Error, FailedPrecondition, PermissionDenied

        driver: Any = spec.driver or _option(self._config, "driver") or None
        pull: Any = _option(self._config, "pull") or None
        mount = spec.mount if spec.mount is not None else _may_mount()
        if not mount and driver is None and spec.mount is None:
            driver = "native"  # whose roots are folders
        try:
            made = self._store.prepare(
                spec.image,
                self.path(),
                view=spec.view,
                mount=mount,
                driver=driver,
                quota=spec.quota,
                platform=spec.platform,
                pull=pull,
            )
        except Error as exc:
            asked = spec.driver is not None or spec.mount or spec.quota is not None
            if asked and isinstance(exc, FailedPrecondition | PermissionDenied):
                pytest.skip(f"no such root of {spec.image} here: {exc}")
            raise pytest.fail.Exception(f"no root of {spec.image}: {exc}", pytrace=False) from None
        self._made.append(made)
        return OrlopRoot(made)

    def fork(self, base: OrlopRoot) -> OrlopRoot:
        (made,) = base.prepared.fork(self.path(), mount=base.prepared.info.mounted)
        self._made.append(made)
        return OrlopRoot(made)

    def make(self, spec: OrlopSpec, bases: _Maker) -> OrlopRoot:
        base = None if spec.view else bases.base(spec)
        return self.prepare(spec) if base is None else self.fork(base)

    def clean(self) -> None:
        """Clean up all of them, the last first; what goes wrong is raised when all were tried."""
        from orlop.errors import Error, NotFound

        failed: list[Error] = []
        while self._made:
            try:
                self._made.pop().cleanup()
            except NotFound:
                continue  # the test did
            except Error as exc:
                failed.append(exc)
        if failed:
            raise failed[0]


def _may_mount() -> bool:
    from orlop.linux.userns import privilege

    return privilege() in {"root", "user-namespace", "single-id"}


# ------------------------------------------------------------------ fixtures


@pytest.fixture(scope="session")
def orlop_store(pytestconfig: pytest.Config) -> Iterator[orlop.Store]:
    """The store of ``--orlop-store``, else the user's own; open for the session."""
    from orlop.cli.configuration import configured
    from orlop.cli.environment import registries
    from orlop.cli.session import Target, open_store

    found = configured(os.environ.get("ORLOP_CONFIG"), os.environ, os.geteuid())
    root = _option(pytestconfig, "store") or os.environ.get("ORLOP_ROOT") or found.get("root")
    run = _option(pytestconfig, "run") or os.environ.get("ORLOP_RUN") or found.get("run")
    if _option(pytestconfig, "store") and not _option(pytestconfig, "run"):
        run = os.path.join(os.path.dirname(os.path.abspath(str(root))), f"{os.path.basename(str(root))}.run")
    target = Target(
        root=root or None,
        run=run or None,
        insecure_registries=registries([_option(pytestconfig, "insecure")]),
        configuration=found,
    )
    with open_store(target) as store:
        yield store


@pytest.fixture(scope="session")
def _orlop_bases(
    orlop_store: orlop.Store, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[_Maker]:
    maker = _Maker(orlop_store, tmp_path_factory.mktemp("orlop-bases"), pytestconfig)
    try:
        yield maker
    finally:
        maker.clean()


@pytest.fixture
def _orlop_maker(
    orlop_store: orlop.Store, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[_Maker]:
    maker = _Maker(orlop_store, tmp_path_factory.mktemp("orlop"), pytestconfig)
    try:
        yield maker
    finally:
        maker.clean()


@pytest.fixture
def orlop_roots(
    request: pytest.FixtureRequest, _orlop_maker: _Maker, _orlop_bases: _Maker
) -> Callable[..., OrlopRoot]:
    """A function that makes a root: ``orlop_roots(image="alpine", view=True)``; all are cleaned up."""
    said = _said(request)

    def make(**words: Any) -> OrlopRoot:  # noqa: ANN401 - the mark's words
        return _orlop_maker.make(OrlopSpec(request, {**said, **words}), _orlop_bases)

    return make


@pytest.fixture
def orlop_root(orlop_roots: Callable[..., OrlopRoot]) -> OrlopRoot:
    """A root for this test alone, of the image that its mark, the command line or the ini file names."""
    return orlop_roots()


def _said(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the marks say, the nearest last."""
    words: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(MARK))):
        words |= mark.kwargs
        if mark.args:
            words["image"] = mark.args[0]
    return words
