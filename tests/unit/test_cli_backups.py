"""``orlop backup`` and ``orlop restore`` on a store that needs no privilege: nothing is mounted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orlop.cli import main
from support import images
from support.layers import Layer


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command line on the store ``name``; exit code, standard output, standard error."""
    monkeypatch.delenv("ORLOP_HOST", raising=False)

    def one(name: str, *words: str | Path) -> tuple[int, str, str]:
        where = ["--root", str(tmp_path / name / "root"), "--run", str(tmp_path / name / "run")]
        capsys.readouterr()
        code = main([*where, *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return one


@pytest.fixture
def filled(tmp_path: Path, run):
    """A store with one image."""
    image = images.make_image([Layer().file("a", b"a").tar(), Layer().file("b", b"b").tar()])
    layout = images.write_layout(tmp_path / "layout", {"latest": image})
    assert run("one", "import", "-q", "--name", "localhost/base", layout)[0] == 0
    return tmp_path


def test_the_path_goes_to_standard_output_and_the_sums_to_standard_error(filled: Path, run) -> None:
    code, out, err = run("one", "backup", "--content", filled / "b.tar")
    assert (code, out) == (0, f"{filled}/b.tar\n")
    assert "orlop: 1 image, 2 layers, " in err
    prepared = run("one", "prepare", "--driver", "native", "localhost/base", filled / "a")
    assert prepared[0] == 0, prepared
    code, out, err = run("one", "backup", filled / "slim.tar")
    assert (code, "1 image, no layers" in err, "1 prepared root left out" in err) == (0, True, True)


def test_a_relative_destination_is_where_the_user_is(
    filled: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)
    assert run("one", "backup", "b.tar")[:2] == (0, f"{filled}/b.tar\n")
    assert run("two", "restore", "b.tar")[0] == 5


def test_json_has_stable_fields(filled: Path, run) -> None:
    _, out, err = run("one", "backup", "--content", "-q", "--json", filled / "b.tar")
    assert err == ""
    assert json.loads(out) == {
        "path": str(filled / "b.tar"),
        "size": (filled / "b.tar").stat().st_size,
        "images": 1,
        "layers": 2,
        "content": True,
        "roots": 0,
    }
    _, out, err = run("two", "restore", "--json", filled / "b.tar")
    names = ["localhost/base:latest"]
    assert json.loads(out) == {"names": names, "pins": [], "missing": [], "layers": 2, "roots": 0}


def test_what_lacks_layers_is_listed_and_the_exit_code_says_so(filled: Path, run) -> None:
    run("one", "backup", filled / "b.tar")
    code, out, err = run("two", "restore", filled / "b.tar")
    assert (code, out) == (5, "")
    assert "localhost/base:latest is not restored: its layers are not in the backup" in err
    assert "orlop restore --pull" in err
    code, out, err = run("two", "restore", "--pull", "--json", filled / "b.tar")
    assert (code, "--pull" in err) == (5, False)
    assert [one["name"] for one in json.loads(out)["missing"]] == ["localhost/base:latest"]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("backup", "b.tar"), 4, "exists"),
        (("backup", "one/root/x"), 2, "inside the store"),
        (("backup", "none/b.tar"), 3, "No such file"),
        (("restore", "none.tar"), 3, "No such file"),
        (("restore", "layout/index.json"), 2, "not a backup"),
        (("restore", "layout"), 2, "not a file"),
        (("restore", "cut.tar"), 9, "ends"),
    ],
)
def test_what_is_refused_has_the_exit_code_of_its_class(
    filled: Path, run, words: tuple[str, str], code: int, reason: str
) -> None:
    run("one", "backup", filled / "b.tar")
    (filled / "cut.tar").write_bytes((filled / "b.tar").read_bytes()[:-2000])
    found, out, err = run("one", words[0], filled / words[1])
    assert (found, out, reason in err) == (code, "", True), err


def test_a_name_that_means_another_image_needs_force(filled: Path, run) -> None:
    run("one", "backup", "--content", filled / "b.tar")
    other = images.write_layout(
        filled / "other", {"latest": images.make_image([Layer().file("other").tar()])}
    )
    run("two", "import", "-q", "--name", "localhost/base", other)
    code, out, err = run("two", "restore", filled / "b.tar")
    assert (code, out, "means another image" in err) == (4, "", True)
    assert run("two", "restore", "--force", filled / "b.tar")[:2] == (0, "localhost/base:latest\n")


def test_a_daemon_does_not_restore(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", f"unix://{filled}/none.sock", "restore", str(filled / "b.tar")]) == 10
    assert "leave out --host" in capsys.readouterr().err
