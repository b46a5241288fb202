"""Dockerfile instructions that edit an image's config: what ``--change`` takes.

All that say something of the image and nothing of its files: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK,
LABEL, MAINTAINER, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR (docs.docker.com/reference/dockerfile);
the fields are those of the image spec's config.md, and Docker's own Healthcheck, OnBuild and Shell.  Words
are read as the builder reads them (`orlop.images.changed.words`), with the variables that the image's
environment has.

One thing is stricter: what begins with ``[`` must be a JSON list.  A builder takes one with an error for a
line for the shell, which nobody who wrote it has meant.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping

from orlop.errors import InvalidArgument
from orlop.hints import Any
from orlop.images.changed.words import expand, split_words

__all__ = ["INSTRUCTIONS", "Editor", "apply_change", "is_text"]

_DEFAULT_SHELL = ["/bin/sh", "-c"]
# Compiled when they are used: most commits change no config.
_PORT = r"(?i)(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?"
_LAST_PORT = 65_535
_SIGNAL = r"(?i)\d{1,3}|(?:SIG)?[A-Z][A-Z0-9]{1,9}(?:[+-]\d{1,2})?"
_DURATION = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_LEAST = 1_000_000  # nanoseconds: Docker takes no healthcheck that is more often
_MOST = (1 << 63) - 1
_TIMES = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_NOT_LATER = ("FROM", "MAINTAINER", "ONBUILD")  # what ONBUILD does not take


class Editor:
    """Edits one config document: instructions, one after the other.

    The document is a whole image's; its ``config`` object is changed in place, and made if there is none.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        if not isinstance(document.get("config"), dict):
            document["config"] = {}
        self._config: dict[str, Any] = document["config"]
        self._has_command = False

    def apply(self, instruction: str) -> None:
        """Do what one instruction says.

        Raises `InvalidArgument` for one that is not understood, says nothing, or is not UTF-8.
        """
        if not is_text(instruction):
            raise InvalidArgument(f"change config by {instruction[:100]!r}", "it is not UTF-8")
        word, rest, what = _parsed(instruction)
        _INSTRUCTIONS[word](self, rest, what)

    # -- what to run ----------------------------------------------------------------------------

    def _cmd(self, text: str, what: str) -> None:
        self._config["Cmd"] = self._command(text, what)
        self._has_command = True

    def _entrypoint(self, text: str, what: str) -> None:
        self._config["Entrypoint"] = self._command(text, what)
        if not self._has_command:  # the old command's arguments are another program's
            self._config.pop("Cmd", None)

    def _shell(self, text: str, what: str) -> None:
        if not text.startswith("["):
            raise InvalidArgument(what, "a shell is a JSON list", hint='write SHELL ["/bin/bash", "-c"]')
        words = _strings(text, what)
        if not words:
            raise InvalidArgument(what, "an empty list")
        self._config["Shell"] = words

    def _command(self, text: str, what: str) -> list[str]:
        """A command in its JSON form, or a line for the shell that the image has."""
        return _strings(text, what) if text.startswith("[") else [*self._shell_words(), text]

    def _shell_words(self) -> list[str]:
        shell = self._config.get("Shell")
        return list(shell) if isinstance(shell, list) and shell else _DEFAULT_SHELL

    def _healthcheck(self, text: str, what: str) -> None:
        if text.upper() == "NONE":
            self._config["Healthcheck"] = {"Test": ["NONE"]}
            return
        check: dict[str, Any] = {}
        while text.startswith("--"):
            flag, _, text = text.partition(" ")
            text = text.lstrip()
            key, equals, value = flag[2:].partition("=")
            if not equals or (key != "retries" and key not in _TIMES):
                raise InvalidArgument(
                    what, f"unknown flag {flag!r}", hint=f"one of --{', --'.join(_TIMES)}, --retries"
                )
            if key == "retries":
                if not (value.isascii() and value.isdigit()) or not 0 < int(value) < 1 << 31:
                    raise InvalidArgument(what, f"--retries is a number from 1 on, not {value!r}")
                check["Retries"] = int(value)
            else:
                check[_TIMES[key]] = _nanoseconds(value, flag, what)
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word.upper() != "CMD" or not rest:
            raise InvalidArgument(what, "neither NONE nor CMD and a command")
        check["Test"] = ["CMD", *_strings(rest, what)] if rest.startswith("[") else ["CMD-SHELL", rest]
        self._config["Healthcheck"] = check

    # -- how to run it --------------------------------------------------------------------------

    def _env(self, text: str, what: str) -> None:
        pairs = self._pairs(text, what)
        kept = [entry for entry in self._config.get("Env") or [] if entry.partition("=")[0] not in pairs]
        self._config["Env"] = kept + [f"{key}={value}" for key, value in pairs.items()]

    def _label(self, text: str, what: str) -> None:
        self._config["Labels"] = {**(self._config.get("Labels") or {}), **self._pairs(text, what)}

    def _expose(self, text: str, what: str) -> None:
        ports: dict[str, Any] = {}
        for word in self._words(text, what):
            ports |= {port: {} for port in _ports(word, what)}
        self._config["ExposedPorts"] = {**(self._config.get("ExposedPorts") or {}), **ports}

    def _volume(self, text: str, what: str) -> None:
        volumes = _strings(text, what) if text.startswith("[") else self._words(text, what)
        volumes = [volume.strip() for volume in volumes]
        if not all(volumes):
            raise InvalidArgument(what, "a volume without a path")
        self._config["Volumes"] = {**(self._config.get("Volumes") or {}), **{path: {} for path in volumes}}

    def _user(self, text: str, what: str) -> None:
        self._config["User"] = self._expand(text, what)

    def _workdir(self, text: str, what: str) -> None:
        """A relative one goes on from the last."""
        before = self._config.get("WorkingDir")
        path = posixpath.join("/", before if isinstance(before, str) else "", self._expand(text, what))
        self._config["WorkingDir"] = posixpath.normpath(path).replace("//", "/", 1)

    def _stopsignal(self, text: str, what: str) -> None:
        signal = self._expand(text, what)
        if not re.fullmatch(_SIGNAL, signal):
            raise InvalidArgument(what, f"no signal: {signal!r}")
        self._config["StopSignal"] = signal

    # -- what is neither ------------------------------------------------------------------------

    def _maintainer(self, text: str, what: str) -> None:
        self._document["author"] = self._expand(text, what)

    def _onbuild(self, text: str, what: str) -> None:
        """What a later build from the image does first: kept as it is, as it is that builder's to read."""
        later = text.partition(" ")[0].upper()
        if later in _NOT_LATER:
            raise InvalidArgument(what, f"ONBUILD takes no {later}")
        self._config["OnBuild"] = [*(self._config.get("OnBuild") or []), text]

    # -- words ----------------------------------------------------------------------------------

    def _variables(self) -> Mapping[str, str]:
        entries = (entry.partition("=") for entry in self._config.get("Env") or [])
        return {key: value for key, _, value in entries}

    def _expand(self, text: str, what: str) -> str:
        value = expand(text, self._variables(), what)
        if not value:
            raise InvalidArgument(what, "it says nothing")
        return value

    def _words(self, text: str, what: str) -> list[str]:
        env = self._variables()
        expanded = (expand(word, env, what) for word in split_words(text, what))
        return [part for word in expanded for part in word.split()]

    def _pairs(self, text: str, what: str) -> dict[str, str]:
        """``a=b c="d e"``, or the old form ``a b``, in which all that follows the name is its value.

        Variables are those of before the line, so ``ENV A=1 B=$A`` gives B the A of before.
        """
        env = self._variables()
        words = split_words(text, what)
        if "=" not in words[0]:
            if len(words) == 1:
                raise InvalidArgument(what, f"not KEY=VALUE: {words[0]!r}")
            key, value = words[0], text[len(words[0]) :].strip()
            return {self._key(key, env, what): expand(value, env, what)}
        pairs: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise InvalidArgument(what, f"not KEY=VALUE: {word!r}", hint="quote a value with white space")
            pairs[self._key(key, env, what)] = expand(value, env, what)
        return pairs

    @staticmethod
    def _key(text: str, env: Mapping[str, str], what: str) -> str:
        key = expand(text, env, what)
        if not key or "=" in key:
            raise InvalidArgument(what, f"not KEY=VALUE: the key is {key!r}")
        return key


_INSTRUCTIONS: Mapping[str, Callable[[Editor, str, str], None]] = {
    "CMD": Editor._cmd,
    "ENTRYPOINT": Editor._entrypoint,
    "ENV": Editor._env,
    "EXPOSE": Editor._expose,
    "HEALTHCHECK": Editor._healthcheck,
    "LABEL": Editor._label,
    "MAINTAINER": Editor._maintainer,
    "ONBUILD": Editor._onbuild,
    "SHELL": Editor._shell,
    "STOPSIGNAL": Editor._stopsignal,
    "USER": Editor._user,
    "VOLUME": Editor._volume,
    "WORKDIR": Editor._workdir,
}
INSTRUCTIONS = tuple(_INSTRUCTIONS)
"""The names of all that are understood."""


def apply_change(config: dict[str, Any], instruction: str) -> None:
    """Apply one instruction to the ``config`` object of an image, in place; as `Editor.apply` does.

    Without a whole document there is nowhere for MAINTAINER, and ENTRYPOINT always takes the command away.
    """
    Editor({"config": config}).apply(instruction)


def is_text(text: str) -> bool:
    """Whether a text can stand in a document: arguments may hold bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(instruction: str) -> tuple[str, str, str]:
    """An instruction's name, what it says, and how to call it in an error."""
    what = f"change config by {instruction[:100]!r}"
    word, *rest = instruction.strip().split(None, 1)[:2] or [""]
    word, text = word.upper(), rest[0].strip() if rest else ""
    if word not in _INSTRUCTIONS:
        raise InvalidArgument(what, f"unknown instruction {word!r}", hint=f"one of {', '.join(INSTRUCTIONS)}")
    if not text:
        raise InvalidArgument(what, "it says nothing")
    if "\0" in text:
        raise InvalidArgument(what, "it has a NUL in it")
    return word, text, what


def _strings(text: str, what: str) -> list[str]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(what, f"not a JSON list: {exc}") from exc
    if not isinstance(parsed, list) or not all(isinstance(part, str) for part in parsed):
        raise InvalidArgument(what, "not a list of strings")
    if not all(is_text(part) for part in parsed):
        raise InvalidArgument(what, "half of a surrogate pair is no character")
    return parsed


def _ports(text: str, what: str) -> Iterable[str]:
    """``80``, ``53/udp`` or a range ``8000-8002/tcp``, in the config's terms."""
    found = re.fullmatch(_PORT, text)
    first = int(found[1]) if found else 0
    last = int(found[2]) if found and found[2] else first
    if found is None or not 0 < first <= last <= _LAST_PORT:
        raise InvalidArgument(what, f"no port: {text!r}", hint="write 80, 53/udp or 8000-8010/tcp")
    return [f"{port}/{(found[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _nanoseconds(text: str, flag: str, what: str) -> int:
    """A duration as Go writes it: ``1m30s``."""
    parts = re.findall(_DURATION, text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidArgument(what, f"no duration: {flag!r}", hint="write --interval=1m30s")
    total = sum(round(float(number) * _UNITS[unit]) for number, unit in parts)
    if total and not _LEAST <= total <= _MOST:
        raise InvalidArgument(what, f"out of range: {flag!r}", hint="at least 1ms; 0 for Docker's default")
    return total
