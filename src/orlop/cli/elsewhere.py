"""Words that people know from docker, podman, nerdctl and ctr, and what does the same here.

Read where something is mistyped, so it is imported then and not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["instead", "instead_of_option", "nearest"]

_RUN = "a container is a command here: `orlop run` starts it and ends with it"
_BUILD = "no Dockerfiles here: `orlop run --keep …` and `orlop commit` make an image of a change"
_NETWORK = "there are no networks here: a container has the host's, or none (`orlop run --net none`)"

# A word or two -> what does it here: a command, or a sentence where nothing does.
_WORDS: dict[str, str] = {
    "attach": f"{_RUN}; `orlop artifact` attaches files to an image in a registry",
    "auth": "orlop login",
    "build": _BUILD,
    "builder": _BUILD,
    "clean": "orlop cleanup",
    "compose": _RUN,
    "create": "orlop prepare IMAGE PATH",
    "delete": "orlop rmi",
    "down": "orlop cleanup",
    "du": "orlop df",
    "exec": "`orlop run` starts a command; in a prepared root a runtime does, with `orlop bundle`",
    "help": "orlop --help",
    "kill": _RUN,
    "list": "orlop images",
    "list-tags": "orlop tags",
    "load": "orlop import",
    "logs": f"{_RUN}, and prints what it prints",
    "network": _NETWORK,
    "pause": _RUN,
    "pod": _RUN,
    "port": _NETWORK,
    "prune": "orlop gc",
    "remove": "orlop rmi",
    "rename": "orlop tag",
    "restart": _RUN,
    "rm": "`orlop cleanup PATH` for a root, `orlop rmi IMAGE` for an image",
    "save": "orlop export",
    "search": "registries have no search that all know; `orlop tags REPOSITORY` lists what is in one",
    "serve": "orlop daemon",
    "start": _RUN,
    "stats": _RUN,
    "stop": _RUN,
    "top": _RUN,
    "umount": "orlop unmount",
    "unpack": "orlop prepare",
    "untag": "orlop rmi",
    "volume": "there are no volumes here: `orlop run -v FOLDER:TARGET` shows a folder of yours",
    "wait": _RUN,
    # nouns, with a verb or alone
    "container": "`orlop ps` lists prepared roots, `orlop run` starts a container",
    "container commit": "orlop commit PATH",
    "container cp": "orlop cp",
    "container create": "orlop prepare IMAGE PATH",
    "container diff": "orlop diff PATH",
    "container inspect": "orlop inspect PATH",
    "container ls": "orlop ps",
    "container list": "orlop ps",
    "container prune": "orlop cleanup --all",
    "container rm": "orlop cleanup PATH",
    "container run": "orlop run",
    "content": "`orlop df` counts blobs, `orlop explain 'blob DIGEST'` tells of one",
    "context": "`orlop --host ADDRESS …`, or ORLOP_HOST",
    "image": "orlop images",
    "image build": _BUILD,
    "image convert": "`orlop push --format …`, or `orlop export --recompress`",
    "image delete": "orlop rmi",
    "image diff": "orlop diff",
    "image exists": "orlop inspect",
    "image export": "orlop export",
    "image history": "orlop history",
    "image import": "orlop import",
    "image inspect": "orlop inspect",
    "image label": "orlop label",
    "image list": "orlop images",
    "image load": "orlop import",
    "image ls": "orlop images",
    "image mount": "orlop prepare --view --mount IMAGE PATH",
    "image prune": "orlop gc",
    "image pull": "orlop pull",
    "image push": "orlop push",
    "image remove": "orlop rmi",
    "image rm": "orlop rmi",
    "image save": "orlop export",
    "image search": "registries have no search that all know; `orlop tags REPOSITORY` lists what is in one",
    "image tag": "orlop tag",
    "image tree": "orlop tree",
    "image unmount": "orlop cleanup PATH",
    "image usage": "orlop df -v",
    "lease": "`orlop pin` keeps things, `orlop pins` lists what is kept",
    "lease ls": "orlop pins",
    "plugin": "`orlop info` lists the drivers",
    "plugin ls": "orlop info",
    "snapshot": "`orlop ps` lists prepared roots, `orlop checkpoint list PATH` what one can go back to",
    "snapshot ls": "orlop ps",
    "snapshot rm": "orlop cleanup PATH",
    "snapshot commit": "orlop commit PATH",
    "snapshot prepare": "orlop prepare IMAGE PATH",
    "snapshot view": "orlop prepare --view IMAGE PATH",
    "snapshot mounts": "orlop mounts PATH",
    "snapshot usage": "orlop df",
    "system": "`orlop info`, `orlop df`, `orlop gc`",
    "system df": "orlop df",
    "system events": "orlop events",
    "system info": "orlop info",
    "system check": "orlop check",
    "system prune": "orlop gc",
    "system reset": "`orlop cleanup --all`, then `orlop rmi --all`",
}
# Other words for the nouns: ctr's and podman's.
_SAME = {
    "buildx": "builder",
    "c": "container",
    "containers": "container",
    "i": "image",
    "images": "image",
    "img": "image",
    "leases": "lease",
    "plugins": "plugin",
    "snapshots": "snapshot",
    "t": "container",
    "task": "container",
    "tasks": "container",
}

# An option of a verb elsewhere -> what to do here.
_OPTIONS: dict[tuple[str, str], str] = {
    **dict.fromkeys(
        (("run", "-d"), ("run", "--detach")),
        "it stays with you until it ends; a service manager or `orlop bundle` and a runtime keep it running",
    ),
    **dict.fromkeys(
        (("run", "-p"), ("run", "--publish"), ("run", "-P")),
        "leave it out: the network is the host's, and so are its ports",
    ),
    **dict.fromkeys(
        (("run", "--privileged"), ("run", "--cap-add"), ("run", "--cap-drop"), ("run", "--security-opt")),
        "`orlop bundle` writes a config.json that can be edited, for any OCI runtime",
    ),
    ("run", "--mount"): "-v SOURCE:TARGET[:ro] shows a path of the host",
    ("run", "--tmpfs"): "`orlop prepare --tmpfs`, and `orlop bundle`",
    ("run", "--link"): _NETWORK,
    ("run", "--restart"): "it is not restarted: a service manager does that",
    ("export", "-i"): "name the image: orlop export -o FILE IMAGE",
    ("import", "-i"): "name the file alone: orlop import FILE",
    ("import", "--input"): "name the file alone: orlop import FILE",
    **dict.fromkeys(
        (("pull", "-a"), ("pull", "--all-tags")), "`orlop tags` lists them, and pull takes many names"
    ),
    **dict.fromkeys(
        (("gc", "-a"), ("gc", "--all"), ("gc", "-f"), ("gc", "--force")),
        "leave it out: nothing is asked.  --keep-age, -count, -size and -free also remove images",
    ),
    ("ps", "-n"): "all are listed; `head` cuts them",
    ("ps", "-l"): "`orlop ps --json | jq 'max_by(.created)'` is the newest",
    **dict.fromkeys(
        (("cleanup", "-v"), ("cleanup", "--volumes")), "leave it out: what a root holds goes with it"
    ),
}


def instead(words: Sequence[str]) -> str:
    """What to say to words that begin no command here: which one does it; empty where nothing is known."""
    nouns = [_SAME.get(words[0], words[0]), *words[1:2]]
    said = _WORDS.get(" ".join(nouns)) if len(nouns) > 1 else None
    if said is None and words[0] != "images":
        said = _WORDS.get(nouns[0])
    if said is None:
        return ""
    return f"did you mean `{said}`?" if said.startswith("orlop ") and "`" not in said else said


def instead_of_option(verb: str, option: str) -> str:
    """What to do here in place of an option that a verb has elsewhere."""
    return _OPTIONS.get((verb, option), "")


def nearest(word: str, possible: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The likeliest of some words, or nothing."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(possible), n=1, cutoff=cutoff)), "")
