"""`orlop.pytest_plugin`, in a pytest of its own: as root, without, with several workers, and when tests fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import images, users
from support.layers import Layer

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.root

PYTEST = ("-p", "orlop.pytest_plugin", "-p", "no:cacheprovider", "-q")


def layout(folder: Path) -> Path:
    layer = Layer().folder("bin").folder("dev").folder("proc").folder("etc").file("etc/motd", b"hello\n")
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for name in ("sh", "cat", "false"):
        layer.symlink(f"bin/{name}", "/bin/busybox")
    config = {"config": {"Env": ["PATH=/bin"]}}
    return images.write_layout(folder, {"v1": images.make_image([layer.tar()], config=config)})


ALL = """
import os
import pytest

pytestmark = pytest.mark.orlop("localhost/box")


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


def test_several(orlop_roots, orlop_store):
    roots = [orlop_roots() for _ in range(3)]
    assert len({root.path for root in roots}) == 3
    assert {str(root.path) for root in roots} <= {root.path for root in orlop_store.prepared()}
    assert os.environ["PYTEST_XDIST_WORKER"] in {"gw0", "gw1"}


def test_cleans_up_itself(orlop_root):
    orlop_root.prepared.cleanup()


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


@pytest.mark.orlop("localhost/nosuch", pull="never")
def test_has_a_word_too_many(orlop_root):
    pass


@pytest.mark.orlop("localhost/nosuch")
def test_has_no_such_image(orlop_root):
    pass
"""
NAMELESS = """
def test_it(orlop_root):
    pass
"""
HOOK = """
def pytest_orlop_setup(root, image):
    assert image == "localhost/box"
    with (root / "etc/motd").open("a") as file:
        file.write("set up\\n")
"""
SET_UP = """
import pytest

pytestmark = pytest.mark.orlop("localhost/box")


def more(root):
    root.check(["sh", "-c", "echo more >> /etc/motd"])


@pytest.mark.parametrize("number", range(2))
def test_it(orlop_root, number):
    assert (orlop_root / "etc/motd").read_text() == "hello\\nset up\\n"
    (orlop_root / "etc/motd").write_text("")


@pytest.mark.orlop(setup=more)
def test_more(orlop_root):
    assert (orlop_root / "etc/motd").read_text() == "hello\\nset up\\nmore\\n"
"""


def test_each_test_has_a_root_of_its_own_and_workers_share_a_store(
    store: orlop.Store, store_dirs: StoreDirs, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.load(layout(store_dirs.work / "box"), name="localhost/box")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    pytester.mkdir("setup")
    files = {"test_all": ALL, "test_nameless": NAMELESS, "setup/conftest": HOOK, "setup/test_setup": SET_UP}
    for name, text in files.items():
        (pytester.path / f"{name}.py").write_text(text)
    # Temporary files are on the tests' own disk, from where an unmount reaches the namespaces that others have
    # just made
    options = (
        f"--orlop-store={store_dirs.root}", f"--orlop-run={store_dirs.run}", "--orlop-pull=never",
        f"--basetemp={store_dirs.work}/tmp", "-p", "xdist.plugin", "-n", "2",
    )  # fmt: skip
    done = pytester.runpytest_subprocess(*PYTEST, *options, timeout=300)
    done.assert_outcomes(passed=9, failed=1, errors=5)
    said = done.stdout.str()
    assert "exits with 3:" in said
    assert "trouble" in said
    assert "the mark orlop has no pull" in said
    assert "orlop_root needs an image" in said
    assert "localhost/nosuch" in said
    assert store.prepared() == []


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


@pytest.mark.parametrize(
    ("driver", "mounted", "before"),
    [
        ("native", False, ()),
        pytest.param("overlay", True, (sys.executable, "-m", "orlop", "unshare"), marks=pytest.mark.soak),
    ],
)
def test_without_root_a_test_has_a_folder_and_in_a_namespace_a_mount(
    store_dirs: StoreDirs, driver: str, mounted: bool, before: tuple[str, ...]
) -> None:
    user = users.make(store_dirs.work / "user", "subids")
    user.orlop("import", layout(user.folder / "box"), "--name", "localhost/box", check=True)
    file = user.folder / "test_it.py"
    file.write_text(WITHOUT_ROOT.replace("DRIVER", driver).replace("MOUNTED", str(mounted)))
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
    done = user.run(*before, *command, file, env=env)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert user.orlop("ps", "-q", check=True).stdout == ""
