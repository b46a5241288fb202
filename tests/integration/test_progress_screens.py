"""What people see of a pull at a terminal: every screen of it is true, and at the end nothing is left over.

The screens are kept as a moving picture in build/recordings; with ORLOP_RECORD it goes into docs/images, too.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import StoreDirs
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.terminals import Frame, Terminal, recording, terminal

pytestmark = pytest.mark.root

TOP = Path(__file__).parents[2]
BAR = r"[━╌]{7,28}"


@pytest.fixture(scope="module")
def image() -> images.Image:
    """Six layers, of three megabytes to a hundred kilobytes; the same bytes each time."""
    dice = random.Random(10)
    tars = []
    for number, size in enumerate((3_000_000, 700_000, 1_800_000, 100_000, 1_200_000, 300_000)):
        layer = Layer()
        for part in range(4):
            layer = layer.file(f"opt/{number}/{part}", dice.randbytes(size // 4) + bytes(size // 3))
        tars.append(layer.tar())
    return images.make_image(tars)


@pytest.fixture
def memory(image: images.Image) -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        for blob in image.blobs.values():
            registry.add_blob("team/app", blob)
        registry.add_manifest("team/app", "1.4", image.document, image.media_type)
        yield registry


def sizes_of(image: images.Image) -> dict[str, int]:
    """The layers' blobs, by what people see of their digests."""
    layers = {digest: len(blob) for digest, blob in image.blobs.items() if digest != image.id}
    return {digest.removeprefix("sha256:")[:12]: size for digest, size in layers.items()}


def orlop_at(dirs: StoreDirs, *args: str) -> list[str]:
    return [sys.executable, "-m", "orlop", "--root", str(dirs.root), "--run", str(dirs.run), *args]


def lines_of(frame: Frame) -> list[str]:
    return ["".join(text for text, _, _ in runs).rstrip() for runs in frame]


def test_a_pull_shows_every_layer_and_a_sum_that_is_right_and_never_goes_back(
    image: images.Image, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    name, sizes = f"{memory.host}/team/app:1.4", sizes_of(image)
    held: dict[str, Fault] = {}
    for digest in image.blobs:
        short = digest.removeprefix("sha256:")[:12]
        if short in sizes:
            held[short] = Fault(method="GET", path=digest, hold_after=sizes[short] * 2 // 3, pace=1_500_000)
    memory.misbehave(*held.values())
    with terminal(orlop_at(store_dirs, "pull", name), columns=92, rows=20) as term:
        for _ in sizes:  # each is held until people have seen it come, in whatever order they do
            term.until(lambda: any(_comes(item, term.text) for item in held))
            held.pop(next(item for item in held if _comes(item, term.text))).release.set()
        assert term.wait() == 0, term.screen.lines()
    total = 0.0
    for _, frame in term.frames:
        lines = [line.split() for line in lines_of(frame)]
        there = sum(_bytes(words, sizes) for words in lines if words and words[0] in sizes)
        for words in lines:
            assert not {"inf", "nan", "-1"} & set(words)
            if words[:1] == ["total"]:
                text = " ".join(words)
                assert re.match(rf"total [0-5] of 6 {BAR} \d+% \d\.\d of \d\.\d MB", text), text
                done = float(re.findall(r"([\d.]+) of [\d.]+ MB", text)[0]) * 1e6
                assert done >= total, "the sum goes back"
                assert done == pytest.approx(there, abs=450_000), "each line is rounded to a tenth of a unit"
                total = done
    assert total > 0
    lines = [line.split() for line in term.screen.lines()]
    assert [words[0] for words in lines[-2:]] == [name, name]
    assert re.fullmatch(rf"{name} done [\d.]+ MB in \d:\d\d", " ".join(lines[-2])), lines
    assert lines[-1] == [name], "the result comes after"
    assert {words[0]: words[1] for words in lines[:-2]} == dict.fromkeys(sizes, "done")
    assert b"\x1b[?25l" not in term.written, "the cursor is never hidden"
    _keep("progress", term, command="orlop pull reg.example.org/team/app:1.4", host=memory.host)


def _comes(item: str, text: str) -> bool:
    """Whether a layer is shown as coming, with bytes."""
    return re.search(rf"{item} fetching .* (?!0\.0)[\d.]+ of .*\n(.*\n)*total ", text) is not None


def _bytes(words: list[str], sizes: dict[str, int]) -> float:
    """What a layer's line says is there of its blob."""
    if words[1] == "fetching":
        (text,) = re.findall(r" ([\d.]+) of [\d.]+ (.?)B", " ".join(words))
        return float(text[0]) * {"": 1, "k": 1e3, "M": 1e6}[text[1]]
    return sizes[words[0]] if words[1] in {"indexing", "done"} else 0


def _keep(stem: str, term: Terminal, *, command: str, host: str) -> None:
    picture = recording(term.frames, command=command, columns=92, replaced={host: "reg.example.org"})
    folders = [TOP / "build/recordings"]
    if os.environ.get("ORLOP_RECORD"):
        folders.append(TOP / "docs/images")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.svg").write_text(picture)


def test_an_interrupted_pull_leaves_a_clean_screen_and_says_truly_what_is_kept(
    image: images.Image, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    name = f"{memory.host}/team/app:1.4"
    largest = max(image.blobs, key=lambda digest: len(image.blobs[digest]))
    held = Fault(method="GET", path=largest, hold_after=500_000)
    memory.misbehave(held)
    sizes = sizes_of(image)
    short = largest.removeprefix("sha256:")[:12]
    with terminal(orlop_at(store_dirs, "pull", name), columns=140) as term:
        term.until(lambda: all(f"{item} done" in term.text for item in sizes if item != short))
        term.until(lambda: re.search(rf"{short} fetching .* 0\.5 of", term.text) is not None)
        term.type(b"\x03")
        assert term.wait() == 130
    lines = term.screen.lines()
    assert lines[-2] == "orlop: stopping; once more to stop at once"
    kept = re.fullmatch(
        rf"orlop: interrupted; ([\d.]+) MB of ([\d.]+) MB are kept, `orlop pull {re.escape(name)}` goes on from there",
        lines[-1],
    )
    assert kept is not None, lines
    assert {line.split()[1] for line in lines[:-2]} == {"done"}, "no half of a drawing"
    there = sum(size for item, size in sizes.items() if item != short) + 500_000
    assert float(kept[1]) == pytest.approx(there / 1e6, abs=0.1)
    assert float(kept[2]) == pytest.approx(sum(sizes.values()) / 1e6, abs=0.1)
    assert os.listdir(store_dirs.root / "trash") == []
    held.release.set()
    memory.misbehave()
    asked = len(memory.seen("GET", "/blobs/"))
    with terminal(orlop_at(store_dirs, "pull", name), columns=140) as term:
        assert term.wait() == 0
    again = memory.seen("GET", "/blobs/")[asked:]
    assert {seen.path.rpartition("/")[2] for seen in again} <= {largest, image.id}
    assert next(seen.headers["range"] for seen in again if seen.path.endswith(largest)) == "bytes=500000-"
    assert f"{len(sizes) - 1} of {len(sizes)} were there" in term.text


def test_a_second_ctrl_c_ends_a_command_at_once(memory: MemoryRegistry, store_dirs: StoreDirs) -> None:
    memory.misbehave(Fault(path="/manifests/", hold_after=0))
    with terminal(orlop_at(store_dirs, "pull", f"{memory.host}/team/app:1.4")) as term:
        term.until(lambda: "resolving" in term.text and bool(memory.seen("GET", "/manifests/")))
        term.type(b"\x03")
        term.until(lambda: "stopping" in term.text)
        term.type(b"\x03")
        # Killed by it where the first had just ended the work: 130, too, to a shell.
        assert term.wait() in {130, -2}
