"""What the documentation shows is what happens: each page's commands are run, and print what it says.

Every page has a store and a home of its own.  A registry of the test's stands for Docker Hub and for
registry.example.com, by the files that tell orlop about mirrors; its images are small ones of busybox.  A page's
commands are those of one shell, in namespaces of its own: what it mounts or leaves running ends with it, and its
/srv is a folder of the test's.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import docpages, users
from support.docpages import Page, Step
from support.images import HOST, make_image, make_index, push
from support.layers import Layer
from support.registries import Registry, serve

TREE = Path(__file__).parents[2]
PAGES = [
    page
    for path in [TREE / "README.md", TREE / "CONTRIBUTING.md", *sorted((TREE / "docs").rglob("*.md"))]
    if (page := docpages.read(path)).steps
]
SECONDS = 240  # for a page at most; it takes one or two

APPLETS = (
    *(
        "ash",
        "cat",
        "chmod",
        "cp",
        "date",
        "echo",
        "env",
        "false",
        "find",
        "grep",
        "head",
        "hostname",
        "id",
        "ls",
    ),
    *("mkdir", "mv", "ps", "pwd", "rm", "sed", "seq", "sh", "sleep", "sort", "stat", "tail", "test", "touch"),
    *("true", "uname", "wc", "whoami"),
)
SYSTEMS = {
    "alpine": ("Alpine Linux", "alpine", "3.22.2"),
    "debian": ("Debian GNU/Linux", "debian", "13"),
    "busybox": ("BusyBox", "busybox", "1.37"),
}
ELSEWHERE = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x")
TAGS = {"alpine": ("latest", "3.22"), "debian": ("stable-slim", "13"), "busybox": ("latest",)}


def _base(name: str) -> bytes:
    """The root of a small system."""
    title, key, version = SYSTEMS[name]
    layer = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    release = f'NAME="{title}"\nID={key}\nVERSION_ID={version}\nPRETTY_NAME="{title} {version}"\n'
    layer.folder("etc").file("etc/os-release", release.encode()).file("etc/motd", b"Welcome!\n")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n").file("etc/group", b"root:x:0:\n")
    layer.folder("root", mode=0o700).folder("tmp", mode=0o1777).folder("srv").folder("dev").folder("proc")
    return layer.folder("sys").folder("usr").folder("usr/share").folder("usr/share/doc").tar()


@pytest.fixture(scope="module")
def hub(lab: Path) -> Iterator[Registry]:
    """A registry with small images by the names of well-known ones."""
    with serve(lab / "docs-registry") as running:
        fill(running)
        yield running


def fill(registry: Registry) -> None:
    """Push the images."""
    for name, tags in TAGS.items():
        config = {
            "created": "2026-10-08T18:30:00Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/bin:/bin"]},
            "history": [{"created": "2026-10-08T18:30:00Z", "created_by": f"ADD {name}.tar.gz /"}],
        }
        image = make_image([_base(name)], config=config)
        if name == "alpine":  # an index, as there: the others' layers are small
            others = [
                make_image([Layer().file("etc/arch", word.encode()).tar()], platform=word, config=config)
                for word in ELSEWHERE
                if word != HOST
            ]
            image = make_index([image, *others])
        for tag in tags:
            push(registry, f"library/{name}", tag, image)


@pytest.mark.root
@pytest.mark.parametrize("page", PAGES, ids=[str(page.path.relative_to(TREE)) for page in PAGES])
def test_what_a_page_shows_is_what_happens(page: Page, hub: Registry, workdir: Path) -> None:
    done = _run(page, hub, workdir)
    wrong = [text for step, code, printed in done if (text := _wrong(page, step, code, printed))]
    assert not wrong, "\n\n".join(wrong)


def _wrong(page: Page, step: Step, code: int | None, printed: str) -> str:
    """What is to be said of a step that did not go as shown; nothing if it did."""
    where = f"{page.path.relative_to(TREE)}:{step.line}: {step.code.splitlines()[0]}"
    if code is None:
        return f"{where}\nwas not reached, or did not end"
    if code and not step.fails:
        return f"{where}\nended with {code}:\n{printed}"
    if step.prints is not None and not docpages.agrees(step.prints, printed):
        return f"{where}\nprints\n{printed}\nand the page shows\n{step.prints}"
    return ""


def _run(page: Page, hub: Registry, workdir: Path) -> list[tuple[Step, int | None, str]]:
    """Run a page's steps in one shell; gives each with its exit code and what it printed."""
    user = users.make(workdir / "user", "subids") if page.user else None
    home = user.home if user else workdir / "home"
    steps, srv = (user.folder if user else workdir) / "steps", workdir / "srv"
    for folder in (home, steps, srv):
        folder.mkdir(exist_ok=True)
    environ = _environ(home, workdir, hub, steps)
    script = steps / "page.sh"
    script.write_text(_script(page, steps, srv))
    (steps / "python.py").write_text(_PYTHON)
    if user:
        environ |= {"ORLOP_ROOT": f"{user.data}/orlop", "ORLOP_RUN": f"{user.runtime}/orlop"}
        for path in (steps, *steps.rglob("*")):
            os.chown(path, users.UID, users.GID)
        inner = user.command("bash", script, env=environ, cwd=home)
    else:
        inner = ["bash", os.fspath(script)]
    # Slave, not private, which would keep what other tests unmount in use for as long as a page takes
    command = ["unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"]
    command += ["--mount-proc", *inner]
    with (steps / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environ,
            start_new_session=True,
        )
        try:
            process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pass  # the steps that did not end say so
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seen = {  # a reader's folders are the usual ones
        environ["ORLOP_ROOT"]: "/home/me/.local/share/orlop" if user else "/var/lib/orlop",
        environ["ORLOP_RUN"]: "/run/user/1000/orlop" if user else "/run/orlop",
        os.fspath(home): "/home/me",
    }
    found = []
    for at, step in enumerate(page.steps):
        code = steps / f"{at}.code"
        out = steps / f"{at}.out"
        printed = (out if out.exists() else steps / "log").read_text(errors="replace")
        for real, shown in seen.items():
            printed = printed.replace(real, shown)
        found.append((step, int(code.read_text()) if code.exists() else None, printed))
    return found


def _environ(home: Path, workdir: Path, hub: Registry, steps: Path) -> dict[str, str]:
    """What the page's shell finds: a store of its own, and files that say where registries are."""
    for name in ("docker.io", "registry.example.com"):
        folder = steps / "certs.d" / name
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'server = "{hub.url}"\n')
    config = steps / "config.toml"
    config.write_text(f'hosts_dirs = ["{steps}/certs.d"]\nregistries_conf = []\n')
    return {
        "HOME": os.fspath(home),
        "LANG": "C.UTF-8",
        "ORLOP_CONFIG": os.fspath(config),
        "ORLOP_PROGRESS": "none",
        "ORLOP_ROOT": os.fspath(workdir / "store"),
        "ORLOP_RUN": os.fspath(workdir / "run"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
    }


def _script(page: Page, steps: Path, srv: Path) -> str:
    """Each step is read by one shell, so what a step sets or enters stays for those after it."""
    place = shlex.quote(os.fspath(steps))
    lines = [] if page.user else [f"mount --bind {shlex.quote(os.fspath(srv))} /srv || exit"]
    if any(step.kind == "python" for step in page.steps):
        lines.append(f"coproc PYTHON {{ exec python {place}/python.py 2>&1; }}")
    for at, step in enumerate(page.steps):
        (steps / f"{at}.step").write_text(step.code + "\n")
        if step.kind == "shell":
            lines.append(f". {place}/{at}.step >{place}/{at}.out 2>&1 </dev/null")
            lines.append(f"echo $? >{place}/{at}.code")
        else:
            lines.append(f"echo {place}/{at} >&${{PYTHON[1]}} && read -r code <&${{PYTHON[0]}}")
            lines.append(f'[ -z "$code" ] || echo "$code" >{place}/{at}.code; code=')
    return "\n".join(lines) + "\n"


# Pieces of Python share their names, as in one file; each is named on standard input, its code is answered.
# The library reads no variables and no files of its own accord: what `orlop.open()` opens is said here.
_PYTHON = """\
import os, sys, traceback

import orlop

real = orlop.open

def here(root=os.environ["ORLOP_ROOT"], run=os.environ["ORLOP_RUN"], *, settings=None):
    told = orlop.config.load(os.environ["ORLOP_CONFIG"]).settings()
    if settings is not None:
        told = settings.__class__(**{**asked(settings), "hosts_dirs": told.hosts_dirs, "registries_conf": ()})
    return real(root, run, settings=told)

def asked(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}

orlop.open = here
scope = {"__name__": "__main__"}
answer = os.dup(1)
for line in sys.stdin:
    place = line.strip()
    out = os.open(place + ".out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1), os.dup2(out, 2), os.close(out)
    code = 0
    try:
        exec(compile(open(place + ".step").read(), place + ".step", "exec"), scope)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(answer, b"%d\\n" % code)
"""


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  1.2 MB", "a 33 kB", True),
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("…\nb", "x\ny\nb", True),
        ("a\n…", "a", True),
        ("a … c", "a b b c", True),
        ("a … c", "a b b d", False),
        ("sha256:" + "0" * 64, "sha256:" + "ab" * 32, True),
        ("3 seconds ago", "1 minute ago", True),
        ("", "something", False),
    ],
)
def test_what_is_shown_and_what_is_printed_are_told_apart(shown: str, printed: str, same: bool) -> None:
    assert docpages.agrees(shown, printed) is same
