"""The command line against a store in memory: what it prints where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import click
import pytest

import orlop
from orlop import errors
from orlop.cli import daemon_main, frontpage, main
from orlop.cli.app import VERBS, app
from orlop.cli.declared import clicks
from orlop.cli.environment import auth_files, default_root, default_run, registries
from orlop.cli.exits import EXIT_CODES, exit_code, one_line
from orlop.cli.interrupts import Interrupts
from orlop.cli.output import ago, show_list, size_text
from orlop.cli.quantities import size_of
from orlop.cli.rootargs import extra_of, id_map_of, id_maps_of, image_volume_of, tmpfs_of
from orlop.cli.session import needs_extra
from orlop.facade import Store
from orlop.images.api import (
    Blob,
    Collected,
    DriverInfo,
    ExtraMount,
    FetchedBlobs,
    IdMap,
    ImageDetails,
    ImageInfo,
    Mount,
    PreparedInfo,
    PushResult,
    Removed,
    StoreInfo,
)
from orlop.images.imports import ImportOptions
from orlop.images.upkeep import Keep, Pin
from orlop.observe import Call, Progress
from orlop.remote.api import Referrer

ID = "sha256:" + "3f" * 32
DIGEST = "sha256:" + "ab" * 32
CONFIG = json.dumps(
    {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [ID]},
        "config": {"Cmd": ["sh"], "Env": ["A=image"], "WorkingDir": "/w"},
    }
).encode()


class FakeVerbs:
    """A store in memory with one image to begin with; it remembers the options it was given."""

    def __init__(self):
        self.known = {"docker.io/library/alpine:latest": self._image("docker.io/library/alpine:latest")}
        self.roots = {}
        self.options = {}
        self.closed = False
        self.mounted = []
        self.after_prepare = None

    def _image(self, name):
        return ImageInfo(
            name=name,
            id=ID,
            digest=DIGEST,
            platform="linux/amd64",
            created="2020-01-01T00:00:00Z",
            size=12_345_678,
            layers=1,
        )

    def _full(self, name):
        return name if "/" in name else f"docker.io/library/{name}:latest"

    def _get(self, name, verb):
        if name == ID:
            return next(iter(self.known.values()))
        if self._full(name) not in self.known:
            raise errors.NotFound(f"{verb} {name}", "no such image", hint="`orlop images` lists them")
        return self.known[self._full(name)]

    def _root(self, path):
        if not path.startswith("/"):
            raise errors.InvalidArgument(f"use path {path}", "the path is relative")
        if path not in self.roots:
            raise errors.NotFound(f"find {path}", "nothing is prepared there")
        return self.roots[path]

    def pull(self, name, *, platform=None, all_platforms=False, call):
        self.options = {"platform": platform, "all_platforms": all_platforms}
        call.observer.progress(Progress(item=ID, phase="fetching", done=1, total=2, rate=1.0))
        call.observer.progress(Progress(item=ID, phase="done", done=2, total=2))
        call.observer.warning("a device was left out")
        if name == "missing":
            raise errors.NotFound("pull missing", "the registry has no such image")
        if name == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
            call.check("pull interrupted")
        self.known[self._full(name)] = self._image(self._full(name))
        return self.known[self._full(name)]

    def push(self, name, destination=None, *, tags=(), recompress=False, all_platforms=False, call, **form):
        self.options = {"recompress": recompress, "all_platforms": all_platforms, **form}
        first = destination or self._get(name, "push").name
        names = (first, *(f"{first.rpartition(':')[0]}:{tag}" for tag in tags))
        return PushResult(name=first, digest=DIGEST, size=1, names=names)

    def fetch_blobs(self, name, *, call):
        info = self._get(name, "fetch blobs of")
        return FetchedBlobs(name=info.name, fetched=(DIGEST,), size=7)

    def images(self):
        return sorted(self.known.values(), key=lambda image: image.name)

    def inspect(self, name, *, platform=None):
        info = self._get(name, "inspect")
        layer = Blob(diff_id=ID, size=1)
        return ImageDetails(info=info, names=(info.name,), config=CONFIG, layers=(layer,))

    def tag(self, name, new_name):
        self.known[new_name] = self._get(name, "tag")
        return self.known[new_name]

    def remove(self, name, *, force=False):
        image = self._get(name, "remove")
        del self.known[image.name]
        return Removed(names=(image.name,), freed=2_000)

    def load(self, source, *, name=None, platform=None, all_platforms=False, options, call):
        self.options = {"platform": platform, "all_platforms": all_platforms}
        self.imported = options
        return [self._image(name or source)]

    def prepare_root(self, name, path, *, options, call):
        self.options = options
        if not path.startswith("/"):
            raise errors.InvalidArgument(f"prepare {path}", "the path is relative")
        image = self._get(name, "prepare").name
        if path in self.roots:
            raise errors.AlreadyExists(f"prepare {path}", "the path is prepared")
        mount = Mount(type="overlay", source="overlay", target=path, options=("lowerdir=/l o", "upperdir=/u"))
        self.roots[path] = PreparedInfo(
            path=path,
            image=image,
            image_id=ID,
            kind="view" if options.view else "active",
            driver="fake",
            mounted=options.mount,
            created="2020-01-01T00:00:00Z",
            mounts=(mount,),
            labels=options.labels,
            quota=options.quota,
            uid_map=options.uid_map,
            gid_map=options.gid_map,
        )
        if options.mount:
            self.mounted.append(path)
        if self.after_prepare is not None:
            self.after_prepare(call)
        return self.roots[path]

    mounts = mount = lambda self, path: self._root(path)

    def unmount(self, path):
        self._unmount(path)
        return self._root(path)

    def _unmount(self, path):
        if path in self.mounted:
            self.mounted.remove(path)
            if Path(path).is_dir():
                Path(path).rmdir()

    def prepared(self):
        return [self.roots[path] for path in sorted(self.roots)]

    def commit(self, path, name=None, *, options, call):
        self._root(path)
        self.options = options
        call.observer.progress(Progress(item="a", phase="reading"))
        call.observer.progress(Progress(item="a", phase="done"))
        return self._image(name or "localhost/new:1")

    def cleanup(self, path, *, call):
        call.check(f"clean up {path}")
        self._root(path)
        del self.roots[path]
        self._unmount(path)

    def label(self, name, changes):
        return replace(self._get(name, "label"), labels={k: v for k, v in changes.items() if v is not None})

    def pin(self, thing, name=None, *, expires=None):
        return Pin(name=name or "pin-1", kind="image", ref=ID, created=0.0, expires=expires)

    def unpin(self, name):
        if name != "base":
            raise errors.NotFound(f"unpin {name}", "there is no such pin")

    def pins(self):
        return [Pin(name="base", kind="image", ref=ID, created=0.0, expires=1e9)]

    def collect(self, *, dry_run=False, keep=None, call):
        self.options = {"keep": keep}
        return Collected(items=(("layer sha256:aa", 1_500), ("blob sha256:bb", 500)))

    def info(self):
        return StoreInfo(
            version="0.0.9",
            root="/r",
            run="/x",
            driver="fake",
            format=1,
            images=1,
            prepared=0,
            drivers=(
                DriverInfo(name="erofs", available=False, reason="only root may"),
                DriverInfo(name="overlay", available=True, reason="it lies on folders here"),
            ),
            privilege="user-namespace",
            features={"reflink": "no", "kernel": "6.12"},
        )

    def close(self):
        self.closed = True


@pytest.fixture
def verbs():
    return FakeVerbs()


@pytest.fixture
def orlop_run(verbs, capsys):
    """Run the command line; gives exit code, standard output, standard error."""

    def run(*argv):
        code = main(argv, open_store=lambda target: Store(verbs))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def start(code):
    """Python in a process of its own, with the CLI's fake store at hand."""
    preamble = "import sys; sys.path.insert(0, sys.argv.pop(1)); from test_cli import *; "
    paths = [str(Path(__file__).parent), str(Path(orlop.__file__).parent.parent)]
    # Buffered, as users have it: what is written fails when it is flushed.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, paths[0]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        text=True,
    )


# What goes where


def test_results_go_to_stdout_and_all_else_to_stderr(orlop_run):
    code, out, err = orlop_run("pull", "--progress", "plain", "busybox")
    assert (code, out) == (0, "docker.io/library/busybox:latest\n")
    assert "fetching" in err
    assert "orlop: warning: a device was left out" in err


def test_quiet_drops_progress_but_not_warnings(orlop_run):
    _, _, err = orlop_run("pull", "-q", "busybox")
    assert err == "orlop: warning: a device was left out\n"


def test_progress_can_be_json(orlop_run):
    _, _, err = orlop_run("pull", "--progress", "json", "busybox")
    first, second, third = map(json.loads, err.splitlines())
    assert first == {"item": ID, "phase": "fetching", "done": 1, "total": 2, "rate": 1}
    assert second["phase"] == "done"
    assert third == {"warning": "a device was left out"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("pull", "a", "b"), "docker.io/library/a:latest\ndocker.io/library/b:latest\n"),
        (("push", "alpine", "r.io/a:1"), f"r.io/a:1@{DIGEST}\n"),
        (
            ("push", "alpine", "r.io/a:1", "--tag", "2", "--tag", "3"),
            f"r.io/a:1@{DIGEST}\nr.io/a:2@{DIGEST}\nr.io/a:3@{DIGEST}\n",
        ),
        (("push", "alpine", f"r.io/a@{DIGEST}"), f"r.io/a@{DIGEST}\n"),
        (("fetch-blobs", "alpine"), f"{DIGEST}\n"),
        (("import", "--name", "localhost/i", "x.tar"), "localhost/i\n"),
        (("import", "-q", "x.tar", "localhost/i"), "localhost/i\n"),
        (("images", "-q"), "docker.io/library/alpine:latest\n"),
        (("images", "--format", "{{.Name}}={{ .size }}"), "docker.io/library/alpine:latest=12345678\n"),
        (("tag", "alpine", "localhost/x"), ""),
        (("rmi", "alpine"), "docker.io/library/alpine:latest\n"),
        (("rmi", "--force", "nothing", "alpine"), "docker.io/library/alpine:latest\n"),
        (("prepare", "alpine", "/a b"), "mount -t overlay -o 'lowerdir=/l o,upperdir=/u' overlay '/a b'\n"),
        (("prepare", "--mount", "alpine", "/a"), "/a\n"),
        (("gc",), "layer sha256:aa  1.5 kB\nblob sha256:bb  500 B\n"),
    ],
)
def test_what_a_verb_prints(orlop_run, argv, expected):
    code, out, _ = orlop_run(*argv)
    assert (code, out) == (0, expected)


@pytest.mark.parametrize("verb", [("pull", "alpine"), ("import", "x.tar")])
def test_platforms_are_handed_down_as_they_were_given(orlop_run, verbs, verb):
    for given, platform, every in (
        ((), (), False),
        (("--platform", "linux/arm64", "--platform", "arm/v7"), ("linux/arm64", "arm/v7"), False),
        (("--all-platforms",), (), True),
    ):
        assert orlop_run(*verb, *given)[0] == 0
        assert verbs.options == {"platform": platform, "all_platforms": every}
    assert orlop_run("push", "--all-platforms", "alpine")[0] == 0
    assert verbs.options["all_platforms"] is True


def test_the_form_of_a_push_is_handed_down_as_it_was_given(orlop_run, verbs):
    verbs.options = {}
    names = ("compression", "level", "format")
    for given, form in (
        ((), (None, None, None)),
        (("--compression", "zstd", "--level", "12"), ("zstd", 12, None)),
        (("--format", "zstd:chunked", "--recompress"), (None, None, "zstd:chunked")),
    ):
        assert orlop_run("push", "alpine", *given)[0] == 0
        assert tuple(verbs.options[name] for name in names) == form
    for wrong in (("--compression", "lz4"), ("--level", "0"), ("--format", "oci"), ("--threads", "0")):
        assert orlop_run("push", "alpine", *wrong)[0] == 2
    code, _, err = orlop_run("--host", "unix:///run/x.sock", "push", "alpine", "--threads", "2")
    assert (code, "compression_threads" in err) == (2, True)


def test_the_life_of_a_root(orlop_run, verbs):
    assert orlop_run("prepare", "alpine", "/srv/a")[0] == 0
    assert orlop_run("mounts", "/srv/a")[1] == orlop_run("prepare", "alpine", "/srv/b")[1].replace("/b", "/a")
    assert orlop_run("mount", "/srv/a", "/srv/b")[1] == "/srv/a\n/srv/b\n"
    assert orlop_run("unmount", "/srv/b")[1] == "/srv/b\n"
    assert orlop_run("ps", "-q")[1] == "/srv/a\n/srv/b\n"
    assert orlop_run("commit", "/srv/a")[1] == "localhost/new:1\n"
    assert orlop_run("commit", "/srv/a", "localhost/x")[1] == "localhost/x\n"
    assert orlop_run("cleanup", "/srv/a", "/srv/b")[1] == "/srv/a\n/srv/b\n"
    assert orlop_run("ps", "-q")[1] == ""
    assert verbs.closed


def test_mount_lines_are_read_back_by_a_shell_as_they_were_meant(orlop_run):
    line = orlop_run("prepare", "alpine", "/a $(b)'c")[1]
    assert shlex.split(line)[-2:] == ["overlay", "/a $(b)'c"]


def test_prepare_hands_every_option_down(orlop_run, verbs):
    flags = ("--view", "--self-contained", "--pull", "never", "--platform", "linux/arm64")
    orlop_run("prepare", *flags, "--label", "a=b=c", "--label", "d", "alpine", "/x")
    options = verbs.options
    assert (options.view, options.mount, options.self_contained) == (True, False, True)
    assert (options.pull, options.platform) == ("never", "linux/arm64")
    assert options.labels == {"a": "b=c", "d": ""}
    assert (options.driver, options.quota, options.extra) == (None, None, ())
    assert (options.uid_map, options.gid_map) == ((), ())


def test_prepare_hands_every_choice_of_assembly_down(orlop_run, verbs, tmp_path):
    orlop_run(
        *("prepare", "--driver", "overlay", "--quota", "512M", "alpine", "/x"),
        *("--uidmap", "0:100000:65535", "--uidmap", "65535:1:1", "--gidmap", "0:7:9"),
        *("-v", f"{tmp_path}:/run/in", "--volume", f"{tmp_path}:/ro:ro", "--tmpfs", "/run:size=1m,mode=755"),
        *("--image-volume", "localhost:5000/b:1:/tools"),
    )
    options = verbs.options
    assert (options.driver, options.quota) == ("overlay", 512 << 20)
    assert options.uid_map == (
        IdMap(inside=0, outside=100_000, size=65_535),
        IdMap(inside=65_535, outside=1, size=1),
    )
    assert options.gid_map == (IdMap(inside=0, outside=7, size=9),)
    assert options.extra == (
        ExtraMount(type="bind", source=str(tmp_path), target="/ro", options=("rbind", "ro")),
        ExtraMount(type="tmpfs", target="/run", options=("size=1m", "mode=755")),
        ExtraMount(type="image", source="localhost:5000/b:1", target="/tools"),
        ExtraMount(type="bind", source=str(tmp_path), target="/run/in", options=("rbind", "rw")),
    )


def test_quota_and_id_maps_of_a_root_are_shown(orlop_run):
    orlop_run("prepare", "--quota", "1k", "--uidmap", "0:5:6", "alpine", "/a")
    entry = {"inside": 0, "outside": 5, "size": 6}
    for argv in (("inspect", "/a"), ("ps", "--json")):
        (root,) = json.loads(orlop_run(*argv)[1])
        assert (root["quota"], root["uid_map"], root["gid_map"]) == (1024, [entry], [entry])


def test_import_hands_every_option_down(orlop_run, verbs, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert orlop_run("import", "x.tar")[0] == 0
    assert verbs.imported == ImportOptions(created=1_700_000_000, newest=1_700_000_000)
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    orlop_run(
        *("import", "--format", "rootfs", "--force", "-c", "ENV A=b", "--change", "CMD x", "-a", "me"),
        *("-m", "why", "--created", "2026-01-31T12:00:00Z", "--owner", "0:5", "x.tar", "n"),
    )
    assert verbs.imported == ImportOptions(
        format="rootfs",
        replace=True,
        changes=("ENV A=b", "CMD x"),
        author="me",
        message="why",
        created=1_769_860_800,
        owner=(0, 5),
    )
    (shown,) = json.loads(orlop_run("import", "--json", "--created", "-5", "x.tar", "n")[1])
    assert (shown["name"], verbs.imported.created) == ("n", -5)
    for wrong in (("--created", "soon"), ("--owner", "root"), ("--format", "odd"), ("--name", "m")):
        assert orlop_run("import", *wrong, "x.tar", "n")[0] == 2


def test_commit_hands_every_option_down(orlop_run, verbs, tmp_path, monkeypatch):
    orlop_run("prepare", "alpine", "/x")
    orlop_run("commit", "-a", "me", "-m", "why", "-c", "ENV A=b", "--change", 'CMD ["x"]', "/x")
    assert (verbs.options.author, verbs.options.message) == ("me", "why")
    assert verbs.options.changes == ("ENV A=b", 'CMD ["x"]')
    assert verbs.options.newest is verbs.options.created is verbs.options.base is None
    ignore = tmp_path / "ignore"
    ignore.write_text("# caches\ntmp/*\n")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    orlop_run(
        *("commit", "-x", "!tmp/a", "--exclude-from", str(ignore), "--squash", "--base", "debian"),
        *("--annotation", "a=b=c", "--freeze", "/a.scope", "/x"),
    )
    assert (verbs.options.exclude, verbs.options.squash) == (("tmp/*", "!tmp/a"), True)
    assert (verbs.options.base, verbs.options.freeze) == ("debian", "/a.scope")
    assert verbs.options.annotations == {"a": "b=c"}
    assert (verbs.options.created, verbs.options.newest) == (1_700_000_000, 1_700_000_000)


@pytest.mark.parametrize(
    "options", [("--annotation", "a"), ("--annotation", "=b"), ("--exclude-from", "/none")]
)
def test_commit_refuses_what_is_no_option_before_anything_is_done(orlop_run, options):
    orlop_run("prepare", "alpine", "/x")
    code, out, error = orlop_run("commit", *options, "/x")
    assert code != 0
    assert (out, "commit /x: " in error) == ("", True), error


def test_mounts_as_json_have_exactly_the_documented_fields(orlop_run):
    mounts = json.loads(orlop_run("prepare", "--mount", "--json", "alpine", "/a")[1])
    expected = {
        "type": "overlay",
        "source": "overlay",
        "target": "/a",
        "options": ["lowerdir=/l o", "upperdir=/u"],
    }
    assert mounts == json.loads(orlop_run("mounts", "/a", "--json")[1]) == [expected]


def test_lists_as_json_have_the_fields_of_the_api(orlop_run):
    (image,) = json.loads(orlop_run("images", "--json")[1])
    fields = {"name", "id", "digest", "platform", "created", "size", "layers", "used", "labels"}
    fields |= {"index", "platforms"}
    assert set(image) == fields
    orlop_run("prepare", "--label", "k=v", "alpine", "/a")
    (root,) = json.loads(orlop_run("ps", "--format", "json")[1])
    assert root["labels"] == {"k": "v"}
    assert root["kind"] == "active"


def test_inspect_tells_images_from_paths(orlop_run):
    orlop_run("prepare", "alpine", "/a")
    image, root = json.loads(orlop_run("inspect", "alpine", "/a")[1])
    assert image["config"] == json.loads(CONFIG)
    assert image["manifest"] is None
    assert image["layers"][0]["diff_id"] == ID
    assert root["path"] == "/a"


def test_gc_hands_its_limits_on(orlop_run, verbs):
    assert orlop_run("gc")[0] == 0
    assert verbs.options["keep"] is None
    argv = ("--keep-age", "1d12h", "--keep-count", "0", "--keep-size", "0", "--keep-free", "2G")
    assert orlop_run("gc", *argv, "--keep-label", "a=b", "--keep-label", "c")[0] == 0
    expected = Keep(age=129_600.0, count=0, size=0, free=2 << 30, labels=("a=b", "c"))
    assert verbs.options["keep"] == expected


@pytest.mark.parametrize(
    "argv",
    [
        ("--keep-age", "soon"),
        ("--keep-age", "5"),
        ("--keep-free", "0"),
        ("--keep-label", "a"),
        ("--keep-size", "-1"),
    ],
)
def test_gc_refuses_a_limit_that_is_none(orlop_run, argv):
    assert orlop_run("gc", *argv)[0] == 2


def test_a_pin_lasts_as_long_as_asked(orlop_run):
    before = time.time()
    pin = json.loads(orlop_run("pin", "alpine", "--name", "base", "--for", "2h", "--json")[1])
    assert before + 7_200 <= pin["expires"] <= time.time() + 7_200
    assert json.loads(orlop_run("pin", "alpine", "--json")[1])["expires"] is None


def test_pins_are_listed_with_their_end(orlop_run):
    assert orlop_run("pins")[1].splitlines()[1].split() == ["base", "image", ID, "2001-09-09T01:46:40+00:00"]
    assert orlop_run("pins", "--format", "name")[1] == "base\n"
    assert orlop_run("unpin", "base")[0] == 0
    assert orlop_run("unpin", "other")[0] == 3


def test_labels_are_set_and_shown(orlop_run):
    assert orlop_run("label", "alpine", "b=1=2", "a", "gone-")[1] == "a=\nb=1=2\n"
    assert orlop_run("label", "alpine", "=x")[0] == 2


def test_gc_as_json_has_the_sum(orlop_run):
    collected = json.loads(orlop_run("gc", "--dry-run", "--json")[1])
    assert collected["freed"] == 2_000
    assert collected["dry_run"] is True
    assert collected["items"][0] == {"item": "layer sha256:aa", "size": 1_500}


def test_a_table_lines_up(orlop_run):
    head, row = orlop_run("images")[1].splitlines()
    for title, value in (("ID", ID[7:19]), ("PLATFORM", "linux/amd64"), ("SIZE", "12.3 MB")):
        assert head.index(title) == row.index(value)


def test_info_shows_the_drivers_with_their_reasons_and_the_features(orlop_run):
    code, out, _ = orlop_run("info")
    assert code == 0
    fields, drivers, features, *_ = out.split("\n\n")
    assert dict(line.split() for line in fields.splitlines()) == {
        "version": "0.0.9",
        "root": "/r",
        "run": "/x",
        "driver": "fake",
        "format": "1",
        "images": "1",
        "prepared": "0",
        "privilege": "user-namespace",
    }
    assert [re.split("  +", line) for line in drivers.splitlines()] == [
        ["DRIVER", "WORKS", "REASON"],
        ["erofs", "no", "only root may"],
        ["overlay", "yes", "it lies on folders here"],
    ]
    assert [re.split("  +", line) for line in features.splitlines()] == [
        ["FEATURE", "FOUND"],
        ["kernel", "6.12"],
        ["reflink", "no"],
    ]


def test_info_as_json_has_the_fields_of_the_api_and_the_host(orlop_run):
    info = json.loads(orlop_run("--host", "unix:///s", "info", "--json")[1])
    assert info["drivers"][0] == {"name": "erofs", "available": False, "reason": "only root may"}
    assert info["features"] == {"reflink": "no", "kernel": "6.12"}
    assert (info["driver"], info["privilege"], info["host"]) == ("fake", "user-namespace", "unix:///s")


def test_version_needs_no_store_unless_a_host_is_named(capsys):
    def refuse(target):
        raise AssertionError("opened")

    assert main(["version", "--json"], open_store=refuse) == 0
    assert json.loads(capsys.readouterr().out)["version"] == orlop.__version__


def test_version_with_a_host_shows_the_daemons(orlop_run):
    assert json.loads(orlop_run("--host", "unix:///s", "version", "--json")[1])["daemon"] == "0.0.9"


# Errors


@pytest.mark.parametrize("cls", errors.Error.__subclasses__(), ids=lambda cls: cls.code)
def test_every_class_of_error_has_its_own_documented_code(cls):
    code = exit_code(cls("do x", "why"))
    assert code in {listed for listed, names, _ in EXIT_CODES if cls.code in names}
    assert code > 1


def test_the_page_about_exit_codes_is_the_table_of_the_code():
    page = (Path(orlop.__file__).parents[2] / "docs/exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(str(code), ", ".join(names), text) for code, names, text in EXIT_CODES]


@pytest.mark.parametrize(
    ("argv", "code", "lines"),
    [
        (
            ("pull", "-q", "missing"),
            3,
            ["orlop: error: pull missing: the registry has no such image"],
        ),
        (
            ("rmi", "x"),
            3,
            ["orlop: error: remove x: no such image", "hint: `orlop images` lists them"],
        ),
        (
            ("prepare", "alpine", "/taken"),
            4,
            ["orlop: error: prepare /taken: the path is prepared"],
        ),
        (
            ("images", "--format", "nonsense"),
            2,
            ["orlop: error: use format 'nonsense': not a format", "hint: table, "],
        ),
        (
            ("images", "--format", "{{.nam}}"),
            2,
            ["orlop: error: use format '{{.nam}}': no field 'nam'", "hint: the fields are name, id"],
        ),
        (
            ("pull",),
            2,
            ["orlop: error: missing argument 'IMAGE...'", "hint: `orlop pull --help` shows how"],
        ),
        (
            ("prepare", "--pull", "maybe", "a", "/b"),
            2,
            ["orlop: error: invalid value for '--pull'", "hint: `orlop prepare --help` shows how"],
        ),
        (
            ("--nope", "images"),
            2,
            ["orlop: error: no such option", "hint: `orlop --help` shows how"],
        ),
        (
            ("images", "--root", "/x"),
            2,
            ["orlop: error: no such option of images: --root", "hint: it goes before the verb: orlop --root"],
        ),
        (
            ("pul", "x"),
            2,
            ["orlop: error: no such verb: pul", "hint: did you mean `orlop pull`?"],
        ),
        (
            ("load", "x"),
            2,
            ["orlop: error: no such verb: load", "hint: did you mean `orlop import`?"],
        ),
        (
            ("--host", "unix:///s", "--root", "/x", "images"),
            2,
            ["orlop: error: --root is the daemon's business", "hint: leave out --root or --host"],
        ),
        (
            ("--host", "unix:///s", "--driver", "native", "images"),
            2,
            ["orlop: error: --driver is the daemon's business", "hint: leave out --driver or --host"],
        ),
        (
            ("--driver", "btrfs", "images"),
            2,
            ["orlop: error: invalid value for '--driver'", "hint: `orlop --help` shows how"],
        ),
        (
            ("prepare", "--quota", "1.5G", "alpine", "/b"),
            2,
            ["orlop: error: use size '1.5G': not a size", "hint: write bytes, or with K, M, G or T"],
        ),
        (
            ("prepare", "--volume", "b:/c", "alpine", "/b"),
            2,
            ["orlop: error: mount volume 'b:/c': the source is not a path", "hint: for a folder here"],
        ),
        (
            ("--host", "unix:///s", "daemon"),
            2,
            ["orlop: error: start the daemon: --host names a daemon", "hint: leave out --host"],
        ),
        (
            ("zzzzz",),
            2,
            ["orlop: error: no such verb: zzzzz", "hint: `orlop --help` lists them"],
        ),
    ],
)
def test_wrong_input_gets_one_clear_line_a_hint_and_the_documented_code(orlop_run, verbs, argv, code, lines):
    orlop_run("prepare", "alpine", "/taken")
    got, out, err = orlop_run(*argv)
    shown = [line for line in err.splitlines() if not line.startswith("orlop: warning")]
    assert (got, out) == (code, "")
    assert len(shown) == len(lines)
    assert all(line.startswith(start) for line, start in zip(shown, lines, strict=True)), err


@pytest.mark.parametrize(
    "argv",
    [
        ("prepare", "alpine", "srv/a"),
        ("mounts", "srv/a"),
        ("cleanup", "srv/a"),
        ("commit", "srv/a"),
        ("mount", "srv/a"),
    ],
)
def test_a_relative_path_is_refused_with_the_absolute_one_as_a_hint(orlop_run, argv):
    code, _, err = orlop_run(*argv)
    assert code == 2
    assert err.endswith(f"hint: write {Path.cwd()}/srv/a\n")


def test_what_was_done_before_an_error_is_printed(orlop_run):
    orlop_run("prepare", "alpine", "/a")
    assert orlop_run("cleanup", "/a", "/b")[:2] == (3, "/a\n")


class Broken(FakeVerbs):
    def __init__(self, exc):
        super().__init__()
        self._exc = exc

    def images(self):
        raise self._exc


@pytest.mark.parametrize(
    ("exc", "code", "text"),
    [
        (KeyError("lost"), 1, "orlop: error: unexpected KeyError: 'lost'\nhint: this is a bug"),
        (OSError(28, "No space left on device"), 8, "orlop: error: images: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/x"), 7, "orlop: error: images: Permission denied: /x\n"),
        (KeyboardInterrupt(), 130, "orlop: error: interrupted\n"),
        (
            errors.Unavailable("reach r", "no\nanswer \x1b[31m"),
            6,
            "orlop: error: reach r: no answer \\x1b[31m\n",
        ),
    ],
)
def test_a_traceback_is_shown_only_with_debug(capsys, exc, code, text):
    for flags, expected in (((), False), (("--debug",), True)):
        assert main([*flags, "images"], open_store=lambda target: Store(Broken(exc))) == code
        err = capsys.readouterr().err
        assert ("Traceback" in err) is expected
        assert text in err


def test_nothing_from_outside_steers_the_terminal():
    assert one_line("a\x1b]0;x\x07\nb\x9b\u202e") == "a\\x1b]0;x\\x07 b\\x9b\\u202e"
    assert one_line("naïve 日本 \udcff") == "naïve 日本 \udcff"


@pytest.mark.parametrize("form", ["table", "name", "{{.digest}}", "{{json .digest}}", "json"])
def test_no_form_of_a_list_steers_the_terminal(form, capsys):
    hostile = Referrer(digest="a\x1b]0;x\x07\nb", media_type="", size=1)
    show_list([hostile], [("DIGEST", lambda one: one.digest)], form=form, names=lambda one: one.digest)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\nb" not in shown


@pytest.mark.parametrize(
    ("closed", "code", "said"), [("<&-", 0, ""), (">&-", 5, "standard output is closed"), ("<&- 2>&-", 0, "")]
)
def test_standard_streams_may_be_closed(closed, code, said):
    python = "import sys; from test_cli import *; sys.exit(main(['images'], open_store=lambda t: Store(FakeVerbs())))"
    paths = [str(Path(__file__).parent), str(Path(orlop.__file__).parent.parent)]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, python],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("busybox" in ended.stdout or "alpine" in ended.stdout) is (code == 0)


def test_a_reader_that_goes_away_ends_it_quietly():
    process = start("sys.exit(main(['images'], open_store=lambda t: Store(FakeVerbs())))")
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(60), err) == (141, "")


def test_a_full_disk_under_stdout_is_an_error():
    process = start(
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1);"
        "sys.exit(main(['images'], open_store=lambda t: Store(FakeVerbs())))"
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 8
    assert err == "orlop: error: write the result: No space left on device\n"


# Ctrl-C


def test_the_first_ctrl_c_stops_cleanly(orlop_run, verbs):
    code, out, err = orlop_run("pull", "--progress", "none", "interrupted", "next")
    assert (code, out) == (130, "")
    assert (
        "orlop: interrupted; 2 B of 2 B are kept, `orlop pull interrupted next` goes on from there\n" in err
    )
    assert "docker.io/library/next:latest" not in verbs.known
    assert verbs.closed


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_has_the_code_that_shells_give_it(signum):
    before = signal.getsignal(signum)

    def work():
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signum)
            Call(cancel=interrupts.cancel).check("work")

    with pytest.raises(errors.Cancelled) as caught:
        work()
    assert exit_code(caught.value) == 128 + signum
    assert signal.getsignal(signum) is before


def test_the_second_ctrl_c_ends_the_process_at_once():
    process = start(
        "i = Interrupts(); i.__enter__(); os.kill(os.getpid(), 2); assert i.cancel.cancelled;"
        "os.kill(os.getpid(), 2); print('still here')"
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "stopped at once" in err


def test_a_ctrl_c_while_the_command_line_is_imported_is_no_traceback():
    process = start(
        "import sys; sys.modules.pop('orlop.cli.app', None);"
        "Finder = type('Finder', (), {'find_spec': lambda self, name, *_:"
        " name == 'orlop.cli.app' and signal.raise_signal(2) or None});"
        "sys.meta_path.insert(0, Finder()); sys.argv = ['orlop', 'pull', 'alpine'];"
        "from orlop.cli import main; sys.exit(main())"
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_signal_that_the_parent_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.signum == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_cleaning_up_after_ctrl_c_has_a_fresh_token():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        with interrupts.renewed() as cancel:
            assert not cancel.cancelled
            os.kill(os.getpid(), signal.SIGINT)
            assert cancel.cancelled
        assert (interrupts.signum, interrupts.cancel.cancelled) == (signal.SIGTERM, True)


# Run


class Ran:
    """A runtime that runs nothing, but remembers what it was given, and does what a test asks."""

    def __init__(self, code=0):
        self.code = code
        self.specs = []
        self.act = None

    def __call__(self, bundle, container):
        self.specs.append(json.loads((bundle / "config.json").read_text()))
        if self.act is not None:
            self.act()
        return self.code


@pytest.fixture
def ran():
    return Ran()


@pytest.fixture
def run_in(verbs, ran, tmp_path, capsys):
    """Run ``orlop run`` below a folder; the fake's roots are made there, as a mount would."""

    def mount(call):
        for path in verbs.mounted:
            Path(path).mkdir(exist_ok=True)

    verbs.after_prepare = mount

    def run(*argv):
        code = main(
            ["--run", str(tmp_path / "run"), "run", "--progress", "none", *argv],
            open_store=lambda target: Store(verbs),
            runner=ran,
        )
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.folder = tmp_path / "run-containers"
    return run


def test_run_hands_its_driver_down(run_in, verbs):
    assert run_in("--driver", "native", "alpine")[0] == 0
    assert verbs.options.driver == "native"


def left_behind(run_in):
    """Files and folders , which the fake does not take away."""
    return [path.name for path in run_in.folder.rglob("*") if path.name != "rootfs"]


def test_run_ends_with_the_commands_code_and_cleans_up(run_in, ran, verbs):
    ran.code = 42
    assert run_in("alpine", "sh", "-c", "exit 42", "--rm", "-it") == (42, "", "")
    (spec,) = ran.specs
    assert spec["process"]["args"] == ["sh", "-c", "exit 42", "--rm", "-it"]
    assert (verbs.roots, verbs.mounted) == ({}, [])
    assert left_behind(run_in) == []


def test_run_hands_its_options_to_the_bundle(run_in, ran, monkeypatch, tmp_path):
    monkeypatch.setenv("FROM_HERE", "here")
    monkeypatch.delenv("NOT_SET", raising=False)
    (tmp_path / "env").write_text("# a comment\n\nA=file\nB=two words\nC=file\n")
    (tmp_path / "vol").mkdir()
    run_in(
        *("--env-file", str(tmp_path / "env"), "-e", "C=option", "-e", "FROM_HERE", "-e", "NOT_SET"),
        *("-w", "/elsewhere", "-u", "12:34", "--entrypoint", "/bin/e", "-t", "--read-only"),
        *("-v", f"{tmp_path}/vol:/vol:ro", "--net", "none", "--hostname", "me", "alpine", "x"),
    )
    (spec,) = ran.specs
    process = spec["process"]
    assert {"A=file", "B=two words", "C=option", "FROM_HERE=here"} <= set(process["env"])
    assert not any(pair.startswith("NOT_SET") for pair in process["env"])
    assert (process["cwd"], process["terminal"], process["args"]) == ("/elsewhere", True, ["/bin/e", "x"])
    assert (process["user"]["uid"], process["user"]["gid"]) == (12, 34)
    assert spec["root"]["readonly"] is True
    assert spec["hostname"] == "me"
    assert {"type": "network"} in spec["linux"]["namespaces"]
    (volume,) = [mount for mount in spec["mounts"] if mount["destination"] == "/vol"]
    assert volume["source"] == f"{tmp_path}/vol"
    assert "ro" in volume["options"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ((), False),
        (("--rm",), False),
        (("--keep",), True),
        (("--name", "a"), True),
        (("--name", "a", "--rm"), False),
        (("--path", "{}/at"), True),
        (("--path", "{}/at", "--rm"), False),
    ],
)
def test_a_root_is_kept_only_when_asked(run_in, verbs, tmp_path, flags, kept):
    flags = [flag.format(tmp_path) for flag in flags]
    assert run_in(*flags, "alpine")[0] == 0
    assert len(verbs.roots) == kept
    assert verbs.mounted == []
    assert not list(run_in.folder.rglob("bundle-*"))
    if "--path" in flags:
        assert left_behind(run_in) == []
    if kept and "--name" in flags:
        assert list(verbs.roots) == [f"{run_in.folder}/a/rootfs"]
        assert (run_in.folder / "a").is_dir()  # else it could not be mounted there again


def test_cleaning_up_a_kept_root_takes_its_folder_away(run_in, verbs, tmp_path):
    run_in("--name", "a", "alpine")
    argv = ["--run", str(tmp_path / "run"), "cleanup", f"{run_in.folder}/a/rootfs"]
    assert main(argv, open_store=lambda target: Store(verbs)) == 0
    assert left_behind(run_in) == []


def test_nothing_is_kept_of_what_never_ran(run_in, verbs, ran):
    code, _, err = run_in("--name", "a", "-u", "nobody-knows", "alpine")
    assert (code, ran.specs, verbs.roots) == (125, [], {})
    assert "nobody-knows" in err


def test_a_name_that_is_in_use_keeps_its_root(run_in, verbs):
    run_in("--name", "a", "alpine")
    before = dict(verbs.roots)
    code, _, err = run_in("--name", "a", "--rm", "alpine")
    assert (code, verbs.roots) == (125, before)
    assert (run_in.folder / "a").is_dir()
    assert "the path is prepared" in err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("missing",), "prepare missing: no such image"),
        (("--nope", "alpine"), "no such option"),
        ((), "missing argument 'IMAGE'"),
        (("--rm", "--keep", "alpine"), "contradict"),
        (("--name", "../x", "alpine"), "not a container's name"),
        (("-v", "x:/y", "alpine"), "the source is not a path"),
        (("-v", "/does/not/exist:/y", "alpine"), "/does/not/exist does not exist"),
        (("-v", "/:/y:rx", "alpine"), "no such option: 'rx'"),
        (("-v", "/", "alpine"), "not a volume"),
        (("-e", "=x", "alpine"), "a variable without a name"),
        (("--env-file", "/does/not/exist", "alpine"), "No such file"),
        (("--entrypoint", "[1]", "alpine"), "not a list of texts"),
        (("--entrypoint", "[", "alpine"), "not JSON"),
        (("--entrypoint", "[" * 100_000, "alpine"), "not JSON"),
        (("--path", "rel", "alpine"), "the path is relative"),
    ],
)
def test_what_orlop_itself_cannot_run_is_125(run_in, ran, verbs, argv, line):
    code, out, err = run_in(*argv)
    assert (code, out, ran.specs, verbs.roots) == (125, "", [], {})
    assert err.splitlines()[0].startswith("orlop: error: ")
    assert line in err
    assert left_behind(run_in) == []


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (errors.NotFound("run x", "not in the image", details={"exit_code": "127"}), 127),
        (errors.PermissionDenied("run x", "not executable", details={"exit_code": "126"}), 126),
        (errors.FailedPrecondition("run x", "the runtime says no"), 125),
        (ValueError("a bug"), 125),
    ],
)
def test_a_runtime_that_fails_leaves_nothing(run_in, ran, verbs, exc, code):
    def fail():
        raise exc

    ran.act = fail
    assert run_in("--keep", "alpine")[0] == code
    assert verbs.roots == {}
    assert left_behind(run_in) == []


def test_ctrl_c_while_preparing_leaves_nothing_even_of_what_was_prepared_by_then(run_in, ran, verbs):
    def interrupt(call):
        os.kill(os.getpid(), signal.SIGINT)
        call.check("prepare alpine")

    verbs.after_prepare = interrupt
    code, _, err = run_in("--name", "a", "alpine")
    assert (code, ran.specs, verbs.roots) == (130, [], {})
    assert err.endswith("orlop: interrupted; nothing ran\n")
    assert left_behind(run_in) == []


def test_ctrl_c_between_preparing_and_running_does_not_run(run_in, ran, verbs):
    make = verbs.after_prepare

    def interrupt(call):
        make(call)
        os.kill(os.getpid(), signal.SIGTERM)

    verbs.after_prepare = interrupt
    assert run_in("alpine")[0] == 128 + signal.SIGTERM
    assert (ran.specs, verbs.roots) == ([], {})


def test_trouble_when_cleaning_up_is_a_warning_and_the_commands_code_counts(run_in, ran, verbs):
    def refuse(path, *, call):
        raise errors.FailedPrecondition(f"clean up {path}", "in use by 4711")

    ran.code, verbs.cleanup = 7, refuse
    code, _, err = run_in("alpine")
    assert code == 7
    assert "orlop: warning: clean up " in err
    assert "in use by 4711" in err


# Help, laziness, options


def all_commands():
    return [(verb, module, text) for verbs in VERBS.values() for verb, (module, text) in verbs.items()]


@pytest.mark.parametrize(("verb", "module", "text"), all_commands(), ids=lambda value: value[:9])
def test_the_table_of_verbs_agrees_with_the_verbs(verb, module, text):
    command = clicks(getattr(import_module(f"orlop.cli.{module}"), f"{verb.replace('-', '_')}_verb"))
    assert isinstance(command, click.Command)
    assert command.name == verb
    first = " ".join(command.help.split("\n\n")[0].split())
    assert first.startswith(text.rstrip(".")), first
    assert f"orlop {verb}" in command.epilog or f"orlop {verb}" in command.epilog.replace(
        "--host unix:///s ", ""
    )


def test_no_arguments_is_welcoming(orlop_run, monkeypatch, tmp_path):
    monkeypatch.setenv("ORLOP_ROOT", str(tmp_path))
    code, out, err = orlop_run()
    assert (code, err) == (0, "")
    assert "orlop run alpine echo hello" in out
    assert "orlop --help" in out
    assert len(out.splitlines()) < 24


def test_the_page_of_help_says_what_the_options_say():
    ctx = click.Context(app, info_name="orlop")
    said = {param.name: param.get_help_record(ctx) for param in app.params}
    assert [*said.items()] == [*frontpage.OPTIONS.items()][:-1]  # the last is click's own, --help


@pytest.mark.parametrize("width", [50, 64, 78, 98])
def test_the_page_of_help_keeps_to_its_width_and_has_every_word(width):
    page = frontpage.page("orlop", width)
    assert all(len(line) <= width for line in page.splitlines() if not line.startswith("    "))
    words = " ".join(page.split())
    texts = [text for _, text in frontpage.OPTIONS.values()]
    texts += [text for verbs in VERBS.values() for _, text in verbs.values()]
    texts += [meaning for _, _, meaning in EXIT_CODES]
    assert all(" ".join(text.split()) in words for text in texts)
    assert " ".join(frontpage.ABOUT.split()) in words


def test_a_process_that_is_asked_for_help_alone_prints_the_same_page():
    environ = {**os.environ, "PYTHONPATH": str(Path(orlop.__file__).parent.parent), "COLUMNS": "70"}
    start = [sys.executable, "-W", "error", "-m", "orlop"]
    short, long = (
        subprocess.run([*start, *argv], env=environ, capture_output=True, text=True, check=True).stdout
        for argv in (["--help"], ["--debug", "--help"])
    )
    assert short == long == frontpage.page("orlop", 68)


@pytest.mark.parametrize(
    ("argv", "columns", "width"), [(["-h"], "10", 50), (["-h"], "200", 98), (["--help"], "no", 78)]
)
def test_the_page_is_as_wide_as_the_terminal_within_reason(argv, columns, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert frontpage.answer(argv) == 0
    out = capsys.readouterr().out
    assert out == frontpage.page("orlop", width) or columns == "no"


def test_a_process_that_is_told_nothing_prints_the_same_page(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ORLOP_ROOT", str(tmp_path))
    assert frontpage.answer([]) == 0
    first = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("argv", [["images"], ["--help", "x"], ["--root", "--help"], ["--version", "-h"]])
def test_what_is_not_for_the_page_alone_is_left_to_the_rest(argv, capsys):
    assert frontpage.answer(argv) is None
    assert capsys.readouterr().out == ""


def test_a_page_for_nobody_is_left_to_the_rest(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert frontpage.answer(["--version"]) is None


@pytest.mark.parametrize("word", ["--help", "--version"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_page_that_is_not_taken_ends_as_other_results_do(word, unbuffered):
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "orlop", word]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.startswith("orlop: error: ")) == (8, True), done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = subprocess.run(
            command, env=environ, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_completion_is_left_to_the_rest(monkeypatch):
    monkeypatch.setenv("_ORLOP_COMPLETE", "bash_source")
    assert frontpage.answer(["--help"]) is None


def test_help_lists_every_verb_and_every_exit_code(orlop_run):
    out = orlop_run("--help")[1]
    assert all(re.search(rf"^  {verb} ", out, re.MULTILINE) for verb, _, _ in all_commands())
    assert all(re.search(rf"^  {code} ", out, re.MULTILINE) for code, _, _ in EXIT_CODES)


@pytest.mark.parametrize("argv", [["--help"], ["images"], ["version"], ["prepare", "alpine", "/a"]])
def test_what_a_verb_does_not_need_is_not_imported(argv):
    paths = str(Path(orlop.__file__).parent.parent)
    code = (
        "import sys; from orlop.cli import main; from orlop.cli.session import Target\n"
        "def stop(target): raise SystemExit\n"
        f"try: main({argv!r}, open_store=stop)\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'rich', 'urllib3', 'msgspec', 'sqlite3'}\n"
        "print(*(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == "\n"


def test_python_dash_m_runs_it():
    environ = {**os.environ, "PYTHONPATH": str(Path(orlop.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-m", "orlop", "--version"], env=environ, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"orlop {orlop.__version__}\n"


def target_of(*argv):
    seen = []

    def opener(target):
        seen.append(target)
        return Store(FakeVerbs())

    assert main([*argv, "images", "-q"], open_store=opener) == 0
    return seen[0]


def test_options_beat_the_environment(monkeypatch):
    monkeypatch.setenv("ORLOP_ROOT", "/from/env")
    monkeypatch.setenv("ORLOP_RUN", "/run/env")
    monkeypatch.setenv("ORLOP_HOST", "unix:///env.sock")
    monkeypatch.setenv("ORLOP_INSECURE_REGISTRIES", "a:1,b")
    monkeypatch.setenv("ORLOP_DRIVER", "overlay")
    target = target_of()
    assert (target.root_path, target.run_path, target.host) == ("/from/env", "/run/env", "unix:///env.sock")
    assert target.settings().insecure_registries == ("a:1", "b")
    assert target.settings().driver == "overlay"
    target = target_of(
        "--root", "rel", "--insecure-registry", "c", "--insecure-registry", "d", "--driver", "native"
    )
    assert (target.root_path, target.host) == (f"{Path.cwd()}/rel", None)
    assert target.settings().insecure_registries == ("c", "d")
    assert target.settings().driver == "native"


def test_without_a_choice_the_driver_is_what_works(monkeypatch):
    monkeypatch.delenv("ORLOP_DRIVER", raising=False)
    assert target_of().settings().driver == "auto"


@pytest.mark.parametrize(
    ("environment", "argv", "durable"),
    [
        (None, (), True),
        ("0", (), False),
        ("1", (), True),
        (None, ("--no-durable",), False),
        ("0", ("--durable",), True),
    ],
)
def test_a_store_is_durable_unless_told_otherwise(monkeypatch, environment, argv, durable):
    monkeypatch.delenv("ORLOP_DURABLE", raising=False)
    if environment is not None:
        monkeypatch.setenv("ORLOP_DURABLE", environment)
    assert target_of(*argv).settings().durable is durable


def test_whether_a_daemon_is_durable_is_its_own_business(capsys):
    assert main(["--host", "unix:///s", "--no-durable", "images"]) == 2
    assert "--durable is the daemon's business" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_the_extra_that_has_it():
    with pytest.raises(errors.Unimplemented) as caught, needs_extra("connect", "daemon"):
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")
    assert (caught.value.reason, caught.value.hint) == (
        "grpc is not installed",
        "pip install 'orlop[daemon]'",
    )
    with pytest.raises(ModuleNotFoundError), needs_extra("connect", "daemon"):
        raise ModuleNotFoundError("No module named 'orlop.lost'", name="orlop.lost")


def test_orlopd_knows_the_global_options(capsys):
    assert daemon_main(["--root", "/x", "--debug", "--listen", "unix:///s", "--help"]) == 0
    shown = capsys.readouterr().out
    known = ("--listen", "--group", "--root", "--run", "--driver", "--no-durable", "--debug")
    assert all(option in shown for option in known)
    assert daemon_main(["--host", "unix:///s"]) == 2
    assert capsys.readouterr().err.startswith("orlopd: error: no such option")


def test_folders_follow_the_user():
    home = {"HOME": "/home/u"}
    assert default_root(home, 0) == orlop.facade.DEFAULT_ROOT
    assert default_run({}, 0) == orlop.facade.DEFAULT_RUN
    assert default_root(home, 1000) == "/home/u/.local/share/orlop"
    assert default_root({**home, "XDG_DATA_HOME": "/data"}, 1000) == "/data/orlop"
    assert default_root({**home, "XDG_DATA_HOME": "relative"}, 1000) == "/home/u/.local/share/orlop"
    assert default_run({"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000) == "/run/user/1000/orlop"
    with pytest.raises(errors.FailedPrecondition, match="XDG_RUNTIME_DIR"):
        default_run(home, 1000)


def test_credentials_files_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/a.json")
    assert target_of().settings().auth_files == ("/a.json",)
    home = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r"}
    expected = ("/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json")
    assert auth_files(home, 1000) == expected


def test_registries_come_in_lists_too():
    assert registries(["a:1, b", "b", "c"]) == ("a:1", "b", "c")


# What prepare is told


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1K", 1024),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("3T", 3 << 40),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_a_size_has_suffixes_that_are_powers_of_1024(text, size):
    assert size_of(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0G",
        "-1",
        "+1",
        "1.5G",
        "1GB",
        "G",
        "1 G",
        "\u0661",
        "1\u212a",
        "1_000",
        "1\n",
        str(2**63),
        "8388608T",
        "9" * 99,
    ],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(errors.InvalidArgument, match="not a size"):
        size_of(text)


@pytest.mark.parametrize(
    "text", ["", "0", "0:1", "0:1:2:3", "a:1:2", "-1:0:1", "0: 1:2", "0:1:2\n", "0:1:\u0661"]
)
def test_what_is_no_id_map_is_refused(text):
    with pytest.raises(errors.InvalidArgument, match="not an id map"):
        id_map_of(text)


@pytest.mark.parametrize(
    ("users", "groups", "expected"),
    [
        ((), (), ([], [])),
        (("0:1:2",), (), ([(0, 1, 2)], [(0, 1, 2)])),
        ((), ("0:1:2",), ([(0, 1, 2)], [(0, 1, 2)])),
        (("0:1:2", "9:0:1"), ("5:6:7",), ([(0, 1, 2), (9, 0, 1)], [(5, 6, 7)])),
    ],
)
def test_id_maps_of_one_kind_alone_are_those_of_both(users, groups, expected):
    found = id_maps_of(users, groups)
    assert tuple([(m.inside, m.outside, m.size) for m in maps] for maps in found) == expected


@pytest.mark.parametrize(
    ("text", "target", "options"),
    [
        ("/tmp", "/tmp", ()),
        ("/tmp:", "/tmp", ()),
        ("/a b:size=64m", "/a b", ("size=64m",)),
        ("/t:size=64m,,mode=1777", "/t", ("size=64m", "mode=1777")),
    ],
)
def test_a_tmpfs_is_a_target_and_options(text, target, options):
    assert tmpfs_of(text) == ExtraMount(type="tmpfs", target=target, options=options)


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("alpine:/m", "alpine", "/m"),
        ("alpine:3:/m", "alpine:3", "/m"),
        ("r.io:5000/a/b:/m", "r.io:5000/a/b", "/m"),
        (f"alpine@{DIGEST}:/m/n", f"alpine@{DIGEST}", "/m/n"),
    ],
)
def test_an_image_volume_is_an_image_and_a_target(text, source, target):
    assert image_volume_of(text) == ExtraMount(type="image", source=source, target=target)


@pytest.mark.parametrize(
    ("volumes", "tmpfs", "images", "reason"),
    [
        (["/:rel"], [], [], "the target 'rel' is not an absolute path"),
        (["/"], [], [], "not a volume"),
        (["/does/not/exist:/a"], [], [], "does not exist"),
        ([], [""], [], "not an absolute path"),
        ([], ["size=1m"], [], "not an absolute path"),
        ([], [], ["alpine"], "not an image and a path"),
        ([], [], [":/m"], "not an image and a path"),
        ([], [], ["alpine:3"], "the target '3' is not an absolute path"),
        ([], [], ["alpine:/m:ro"], "the target 'ro' is not an absolute path"),
        (["/:/a/b"], ["/a//b/"], [], "two mounts have this target"),
    ],
)
def test_what_is_no_mount_is_refused(volumes, tmpfs, images, reason):
    with pytest.raises(errors.Error, match=reason):
        extra_of(volumes, tmpfs, images)


def test_a_mount_comes_after_the_one_that_it_lies_on():
    found = extra_of(["/:/a/b/c", "/:/z"], ["/a", "/a/b/c/d/"], ["alpine:/a/b"])
    assert [mount.target for mount in found] == ["/z", "/a", "/a/b", "/a/b/c", "/a/b/c/d/"]


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    from support.screens import screen as shown  # late: `start` imports this module without the tests' folder

    return shown(text)


def as_terminal(monkeypatch):
    """Make standard error a terminal.  In the test's own body: pytest sets the streams anew before it."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_the_last_state_is_drawn_before_the_verb_ends(orlop_run, monkeypatch):
    terminal = as_terminal(monkeypatch)
    orlop_run("prepare", "alpine", "/x")
    orlop_run("commit", "/x")
    assert [line.split() for line in screen(terminal.getvalue())] == [["a", "done"]]


def test_progress_is_off_the_screen_when_the_container_starts(run_in, ran, verbs, monkeypatch):
    terminal = as_terminal(monkeypatch)
    make, seen = verbs.after_prepare, []

    def prepare(call):
        make(call)
        call.observer.progress(Progress(item="a", phase="merging"))
        seen.append(screen(terminal.getvalue()))

    verbs.after_prepare = prepare
    ran.act = lambda: seen.append(screen(terminal.getvalue()))
    assert run_in("--progress", "auto", "alpine")[0] == 0
    before, at_start = seen
    assert [line.split() for line in before] == [["a", "merging"]]
    assert at_start == []


# Words


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (5 * 10**15, "5000.0 TB")],
)
def test_sizes_are_decimal(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("", ""),
        ("nonsense", "nonsense"),
        ("9999-01-01T00:00:00Z", "in the future"),
        ("1970-01-01T00:00:00.123456789Z", "years ago"),
    ],
)
def test_ages_are_forgiving(created, text):
    assert ago(created).endswith(text)


def test_completion_offers_verbs():
    environ = {
        **os.environ,
        "PYTHONPATH": str(Path(orlop.__file__).parent.parent),
        "_ORLOP_COMPLETE": "bash_complete",
        "_ORLOP_LINE": "orlop im",
    }
    code = "from orlop.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    lines = [line.split("\t")[:2] for line in result.stdout.splitlines() if line]
    assert lines == [["plain", "import"], ["plain", "images"]]
