"""What ``orlop --help`` and ``orlop --version`` say: the verbs, the global options, the exit codes.

The tables are the command line's own: `app` finds verbs by them and takes its options' help from them, and
`exits` its codes.  They stand apart from both so that a page of help needs neither click nor typing, with
what these import: that was three quarters of its life.

Imports nothing but what every Python has imported when it starts.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as a type checker has it; the real one is a third of what help imported
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["ABOUT", "EXAMPLES", "EXIT_CODES", "OPTIONS", "VERBS", "answer", "page", "painted", "width_of"]

# name -> how it is written, what the help says
OPTIONS: dict[str, tuple[str, str]] = {
    "host": (
        "--host ADDRESS",
        "Ask the daemon at unix://PATH or tcp://HOST:PORT instead of opening the store here.",
    ),
    "tls_cert": ("--tls-cert FILE", "Over TCP: who you are."),
    "tls_key": ("--tls-key FILE", "The key of --tls-cert."),
    "tls_ca": ("--tls-ca FILE", "The authority of the daemon's certificate."),
    "root": ("--root DIR", "Where images are kept."),
    "run": ("--run DIR", "Where mount points are kept."),
    "config": ("--config FILE", "Read this file instead of /etc/orlop/config.toml and the user's own."),
    "limits": (
        "--limit NAME=VALUE",
        "Set a limit, such as layer_size=1TiB.  May be repeated; ORLOP_LIMITS has several.",
    ),
    "told": (
        "--set KEY=VALUE",
        "Set any other key of a configuration file, such as downloads=6.  May be repeated.",
    ),
    "insecure_registries": (
        "--insecure-registry HOST",
        "Speak http or unverified TLS with this registry.  May be repeated.",
    ),
    "driver": (
        "--driver [auto|erofs|overlay|native]",
        "How new roots are assembled.  [default: auto]",
    ),
    "durable": (
        "--durable / --no-durable",
        "Whether what is answered for outlasts a power cut.  [default: durable]",
    ),
    "color": (
        "--color [auto|always|never]",
        "Whether to paint what people read; NO_COLOR is heeded.  [default: auto]",
    ),
    "debug": ("--debug", "Show tracebacks."),
    "version": ("--version", "Show the version and exit."),
    "help": ("-h, --help", "Show this message and exit."),
}

# heading -> verb -> module, what the help says
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Images": {
        "pull": ("transfer", "Fetch images from a registry."),
        "push": ("transfer", "Send an image to a registry."),
        "fetch-blobs": ("transfer", "Fetch the blobs of an image's layers that are not kept."),
        "export": ("export", "Write images to an archive or a layout, or one file system to a file."),
        "import": ("imports", "Import images, or a root file system as one."),
        "share": ("share", "Let podman, buildah and skopeo read images here, without a copy."),
        "images": ("images", "List images."),
        "inspect": ("images", "Show all there is to know of an image or a prepared root."),
        "tag": ("images", "Give an image a further name."),
        "label": ("pins", "Set labels of an image's name, or take them away (KEY-)."),
        "rmi": ("images", "Remove images, and the disk that nothing else needs."),
    },
    "Files in images and roots": {
        "ls": ("contents", "List files of an image, a layer or a prepared root; nothing is mounted."),
        "cat": ("contents", "Print files of an image, a layer or a prepared root; nothing is mounted."),
        "find": ("contents", "Find files by a pattern, in an image, a layer or a root, or in all images."),
        "cp": ("cp", "Copy files out of an image, a layer or a prepared root, or into a prepared root."),
        "diff": ("compare", "Show what differs between two images, layers or prepared roots."),
        "blame": ("lineage", "Show which layers brought, changed and deleted a path."),
        "history": ("lineage", "Show how an image was made: its history, each line with its layer."),
        "tree": ("lineage", "Show files as a tree, with sizes and the layers they came from."),
        "waste": ("lineage", "Show what an image's layers hold that layers above hide or delete."),
        "explore": ("explore", "Explore an image or a prepared root in the terminal."),
        "report": ("report", "Write a report on an image or a prepared root, as one page of HTML."),
    },
    "Root file systems": {
        "run": ("run", "Run a command in a container made from an image."),
        "prepare": ("roots", "Make an image's root file system ready at a path."),
        "mounts": ("roots", "Print the mounts of a prepared root again."),
        "mount": ("roots", "Mount prepared roots."),
        "unmount": ("roots", "Unmount prepared roots; what was written stays."),
        "ps": ("roots", "List prepared roots."),
        "commit": ("commit", "Make an image of what changed in a prepared root."),
        "bundle": ("bundle", "Write a bundle for a prepared root, which any OCI runtime runs."),
        "fork": ("forks", "Make new roots with the content of a prepared one."),
        "checkpoint": ("forks", "Remember what a prepared root is, and go back to it."),
        "cleanup": ("roots", "Unmount prepared roots and delete what was written."),
        "unshare": ("unshare", "Open a shell where prepared roots can be mounted without root."),
    },
    "Registries": {
        "login": ("login", "Log in to a registry: try a name and a password there, and keep them."),
        "logout": ("login", "Forget the credentials for a registry."),
        "copy": ("remote", "Copy an image from registry to registry; nothing is stored here."),
        "tags": ("remote", "List the tags of a repository."),
        "manifest": ("remote", "Show what a name means at its registry."),
        "referrers": ("remote", "List what refers to an image: signatures, SBOMs and the like."),
        "delete-remote": ("remote", "Delete tags or manifests at their registry."),
        "artifact": ("artifacts", "Push and pull files as artifacts."),
    },
    "Service": {
        "daemon": ("daemon", "Serve the store on a unix socket, or over TLS."),
        "gc": ("upkeep", "Delete what no image, prepared root, lease or pin needs."),
        "pin": ("pins", "Keep an image, a layer, a chain or a blob, whatever happens to its names."),
        "unpin": ("pins", "Take pins back; what nothing else needs is deleted."),
        "pins": ("pins", "List pins."),
        "backup": ("backups", "Write the metadata, and the layers if asked, to a new file."),
        "restore": ("backups", "Read a backup into the store: its images, all of them or none."),
        "check": ("check", "Check that all is there that the store promises; mend what is not."),
        "df": ("diagnose", "Show what the store takes on disk."),
        "explain": ("diagnose", "Show why something is kept, what it shares, and what its removal frees."),
        "events": ("events", "Show what happened to the store, and what happens."),
        "config": ("config", "Show what is configured and by whom, and what is wrong with it."),
        "doctor": ("doctor", "Say what is well here and what is not, and what to do about it."),
        "completion": ("completion", "Print what makes a shell complete verbs, options, images and paths."),
        "info": ("info", "Show the store and what serves it."),
        "version": ("upkeep", "Show versions."),
    },
}

UNEXPECTED = 1
USAGE = 2
RUN_FAILED = 125  # docker-run(1), "Exit Status"
CANCELLED = 130  # 128 + SIGINT, as shells show it
OUTPUT_CLOSED = 141  # 128 + SIGPIPE, likewise

# code, gRPC classes, meaning
EXIT_CODES: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (0, (), "success"),
    (UNEXPECTED, ("UNKNOWN",), "unexpected: most likely a bug"),
    (USAGE, ("INVALID_ARGUMENT", "OUT_OF_RANGE"), "wrong usage or a wrong argument"),
    (3, ("NOT_FOUND",), "no such image, root or file"),
    (4, ("ALREADY_EXISTS",), "the name or the path is taken"),
    (5, ("FAILED_PRECONDITION",), "the store or the machine is not in the state that this needs"),
    (6, ("UNAVAILABLE",), "a registry or the daemon does not answer; trying again may help"),
    (7, ("PERMISSION_DENIED", "UNAUTHENTICATED"), "not allowed, or credentials are missing"),
    (8, ("RESOURCE_EXHAUSTED",), "a disk is full or a limit was reached"),
    (9, ("DATA_LOSS",), "bytes are not what their digest says; orlop check: damage is left"),
    (10, ("UNIMPLEMENTED",), "this build, kernel or driver cannot do it"),
    (11, ("DEADLINE_EXCEEDED",), "out of time"),
    (12, ("ABORTED", "INTERNAL"), "another call won, or a promise of orlop's own was broken"),
    (RUN_FAILED, (), "orlop run, unshare: orlop itself failed"),
    (126, (), "orlop run, unshare: the command cannot be executed"),
    (127, (), "orlop run, unshare: there is no such command"),
    (CANCELLED, ("CANCELLED",), "stopped by Ctrl-C (143 by SIGTERM, 129 by SIGHUP)"),
    (OUTPUT_CLOSED, (), "whoever read the output went away"),
)

ABOUT = """\
orlop: container images, and root file systems from them.

Name an image and a path; get a root file system there.  Write in it, make an image of what changed, clean up.
"""

EXAMPLES = """\
Begin with:
  orlop pull alpine
  orlop run alpine echo hello
  orlop prepare --mount alpine /srv/a    then write below /srv/a
  orlop commit /srv/a localhost/mine     make an image of the change
  orlop cleanup /srv/a

Completion for bash, zsh or fish:
  eval "$(orlop completion bash)"
"""

_WIDEST = 100  # columns
_TERM = 30  # columns that an option has before its text goes below it


def answer(argv: Sequence[str]) -> int | None:
    """Do what ``argv`` asks for if it is nothing, help or the version; None where it is another's."""
    if "_ORLOP_COMPLETE" in os.environ or sys.stdout is None:
        return None
    if not argv:
        from orlop.cli.welcome import here

        text = here()
    elif argv in (["-h"], ["--help"]):
        text = painted(page("orlop", width_of()))
    elif argv == ["--version"]:
        from orlop.version import __version__

        text = f"orlop {__version__}\n"
    else:
        return None
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        from orlop.cli.exits import report
        from orlop.cli.output import lost

        return report(lost(exc))
    return 0


def width_of() -> int:
    """The columns of a page here, as click would have them."""
    said = os.environ.get("COLUMNS", "")
    columns = int(said) if said.isascii() and said.isdigit() else 0
    if not columns:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):  # closed, detached, or no terminal
            columns = 0
    return max(min(columns or 80, _WIDEST) - 2, 50)


def page(program: str, width: int) -> str:
    """The help of all, as click would set it."""
    usage = f"Usage: {program} "
    lines = [*_filled("[OPTIONS] VERB [ARGS]...", width, usage, " " * len(usage)), ""]
    for paragraph in ABOUT.strip().split("\n\n"):
        lines += [*_filled(paragraph, width, "  ", "  "), ""]
    lines += ["Options:", *_listed(OPTIONS.values(), width), ""]
    first = max(len(verb) for verbs in VERBS.values() for verb in verbs)
    for heading, verbs in VERBS.items():
        rows = [(verb.ljust(first), text) for verb, (_, text) in verbs.items()]
        lines += [f"{heading}:", *_listed(rows, width), ""]
    lines += [f"  {line}" if line else "" for line in EXAMPLES.splitlines()]
    lines += ["", "Exit codes:", *_listed([(str(code), text) for code, _, text in EXIT_CODES], width)]
    return "\n".join(lines) + "\n"


def painted(text: str) -> str:
    """A page whose headings are bold, where standard output is to be painted."""
    from orlop.cli.colours import paint, wanted

    if not wanted(sys.stdout):
        return text
    lines = text.split("\n")
    return "\n".join(
        paint(line, "bold", sys.stdout) if line.endswith(":") and not line.startswith("   ") else line
        for line in lines
    )


def _listed(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Terms, each with its text beside it, or below where a term is long."""
    rows = list(rows)
    first = min(max(len(term) for term, _ in rows), _TERM) + 2
    for term, text in rows:
        begin = f"  {term}".ljust(first + 2)
        if len(term) > _TERM:
            yield begin.rstrip()
            begin = " " * (first + 2)
        yield from _filled(text, width, begin, " " * (first + 2))


def _filled(text: str, width: int, begin: str, indent: str) -> Iterator[str]:
    """A text in lines of so many columns, broken at spaces."""
    line, gap = begin, ""
    for word in text.split():
        if gap and len(line) + len(gap) + len(word) > width:
            yield line
            line, gap = indent, ""
        line += gap + word
        gap = "  " if word.endswith(".") else " "
    yield line
