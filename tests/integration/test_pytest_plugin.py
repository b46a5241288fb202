"""`orlop.pytest_plugin`, in a pytest of its own: as root, without, with several workers, and when tests fail."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import images, users
from support.layers import Layer

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.root

PYTEST = ("-p", "orlop.pytest_plugin", "-p", "no:cacheprovider", "-q")
Run = Callable[..., pytest.RunResult]


def layout(folder: Path) -> Path:
    layer = Layer().folder("bin").folder("dev").folder("proc").folder("etc").file("etc/motd", b"hello\n")
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for name in ("sh", "cat", "false"):
        layer.symlink(f"bin/{name}", "/bin/busybox")
    config = {"config": {"Env": ["PATH=/bin"]}}
    return images.write_layout(folder, {"v1": images.make_image([layer.tar()], config=config)})


@pytest.fixture
def run(
    store: orlop.Store, store_dirs: StoreDirs, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Run test files with the test's store, in which there is ``localhost/box``; no root of it is left then."""
    store.load(layout(store_dirs.work / "box"), name="localhost/box")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")

    def run_them(source: str, *options: str, image: str = "localhost/box") -> pytest.RunResult:
        pytester.makepyfile(textwrap.dedent(source))
        given = (
            f"--orlop-store={store_dirs.root}",
            f"--orlop-run={store_dirs.run}",
            f"--orlop-image={image}",
        )
        # On the tests' own disk, from where an unmount reaches the namespaces that others have just made
        temporary = f"--basetemp={store_dirs.work}/tmp"
        return pytester.runpytest_subprocess(*PYTEST, *given, temporary, *options, timeout=200)

    yield run_them
    assert store.prepared() == []


def test_each_test_has_a_root_of_its_own(run: Run) -> None:
    done = run("""
        import pytest

        def test_one(orlop_root):
            assert (orlop_root / "etc/motd").read_text() == "hello\\n"
            (orlop_root / "/etc/motd").write_text("changed\\n")
            assert orlop_root.check(["cat", "/etc/motd"]) == "changed\\n"
            assert orlop_root.changed() == {"/etc/motd": "changed"}

        def test_another(orlop_root):
            assert orlop_root.run(["cat", "/etc/motd"]).stdout == "hello\\n"
            assert orlop_root.changed() == {}

        @pytest.mark.orlop(view=True)
        def test_a_view(orlop_root):
            with pytest.raises(OSError, match="Read-only"):
                (orlop_root / "etc/new").write_text("")

        @pytest.mark.orlop("localhost/box", driver="native", mount=False)
        def test_a_folder(orlop_root):
            assert str(orlop_root.path) == orlop_root.prepared.folder
            assert orlop_root.run(["cat", "/etc/motd"]).code == 0

        @pytest.mark.parametrize("number", range(3))
        def test_several(orlop_roots, orlop_store, number):
            roots = [orlop_roots() for _ in range(3)]
            assert len({root.path for root in roots}) == 3
            assert len(orlop_store.prepared()) == 3

        def test_it_is_clean_then(orlop_store):
            assert orlop_store.prepared() == []
        """)
    done.assert_outcomes(passed=8)


def test_what_fails_leaves_nothing_and_says_why(run: Run, store: orlop.Store) -> None:
    done = run("""
        import pytest

        def test_fails(orlop_root):
            (orlop_root / "etc/new").write_text("x")
            orlop_root.check(["sh", "-c", "echo trouble >&2; exit 3"])

        @pytest.fixture
        def broken(orlop_root):
            raise RuntimeError("in a fixture")

        def test_breaks(broken):
            pass

        @pytest.mark.orlop(driver="nonsense")
        def test_has_no_such_driver(orlop_root):
            pass

        @pytest.mark.orlop(colour="red")
        def test_has_a_word_too_many(orlop_root):
            pass

        def test_cleans_up_itself(orlop_root):
            orlop_root.prepared.cleanup()
        """)
    done.assert_outcomes(passed=1, failed=1, errors=3)
    done.stdout.fnmatch_lines(["*exits with 3:*", "*trouble*"])
    done.stdout.fnmatch_lines(["*the mark orlop has no colour*"])


def test_without_an_image_the_ways_to_name_one_are_told(run: Run) -> None:
    done = run("def test_it(orlop_root): pass", image="")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*orlop_root needs an image*"])


def test_a_setup_is_done_once_and_each_test_has_a_fork(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        def pytest_orlop_setup(root, image):
            assert image == "localhost/box"
            with (root / "etc/motd").open("a") as file:
                file.write("set up\\n")
    """)
    done = run("""
        import pytest

        def more(root):
            root.check(["sh", "-c", "echo more >> /etc/motd"])

        @pytest.mark.parametrize("number", range(3))
        def test_it(orlop_root, number):
            assert (orlop_root / "etc/motd").read_text() == "hello\\nset up\\n"
            (orlop_root / "etc/motd").write_text("")

        @pytest.mark.orlop(setup=more)
        def test_more(orlop_root):
            assert (orlop_root / "etc/motd").read_text() == "hello\\nset up\\nmore\\n"
        """)
    done.assert_outcomes(passed=4)


def test_workers_share_a_store(run: Run) -> None:
    source = """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(orlop_root, number):
            assert orlop_root.check(["cat", "/etc/motd"]) == "hello\\n"
            (orlop_root / "etc/motd").write_text(str(number))
        """
    run(source, "-p", "xdist.plugin", "-n", "2").assert_outcomes(passed=6)


def test_it_is_inert_until_a_test_wants_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("""
        import sys

        def test_nothing_of_it_is_imported():
            ours = {name for name in sys.modules if name.startswith("orlop")}
            assert ours == {"orlop", "orlop.version", "orlop.pytest_plugin"}
        """)
    pytester.runpytest_subprocess(*PYTEST, "--strict-markers", timeout=60).assert_outcomes(passed=1)


WITHOUT_ROOT = """
def test_it(orlop_root):
    assert orlop_root.check(["cat", "/etc/motd"]) == "hello\\n"
    (orlop_root / "etc/motd").write_text("changed")
    assert orlop_root.changed() == {"/etc/motd": "changed"}
    assert orlop_root.prepared.info.driver == "DRIVER"
    assert orlop_root.prepared.info.mounted == MOUNTED
"""


def test_without_root_a_test_has_a_folder_and_in_a_namespace_a_mount(store_dirs: StoreDirs) -> None:
    user = users.make(store_dirs.work / "user", "subids")
    user.orlop("import", layout(user.folder / "box"), "--name", "localhost/box", check=True)
    command = (
        sys.executable,
        "-m",
        "pytest",
        *PYTEST,
        "--orlop-image=localhost/box",
        "-p",
        "no:faulthandler",
    )
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for driver, mounted, before in (("native", False, ()), ("overlay", True, ("-m", "orlop", "unshare"))):
        file = user.folder / f"test_{driver}.py"
        file.write_text(WITHOUT_ROOT.replace("DRIVER", driver).replace("MOUNTED", str(mounted)))
        words = (sys.executable, *before, *command) if before else command
        done = user.run(*words, file, env=env)
        assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert user.orlop("ps", "-q", check=True).stdout == ""
