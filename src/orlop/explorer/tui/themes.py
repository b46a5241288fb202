"""The explorer's colours, for a dark and for a light terminal; text has a contrast of 4.5 or more in both."""

from __future__ import annotations

from collections.abc import Mapping

from textual.theme import Theme

__all__ = ["DARK", "LIGHT", "theme_for"]

DARK = Theme(
    name="orlop-dark",
    dark=True,
    primary="#7ea6d8",
    secondary="#8fb3a8",
    accent="#8ab4f0",
    foreground="#d6dae1",
    background="#16191f",
    surface="#16191f",
    panel="#20252d",
    success="#8cc68f",
    warning="#dcb367",
    error="#e58a86",
    variables={
        "line": "#363d48",
        "faint": "#949ca9",
        "cursor": "#233852",
        "cursor-blurred": "#272d37",
        "bar": "#5b85b8",
        "added": "#8cc68f",
        "changed": "#dcb367",
        "deleted": "#ec9a96",
        "link": "#79bfc4",
        "map-0": "#2f4d73",
        "map-1": "#2f5d55",
        "map-2": "#5c4a6e",
        "map-3": "#6a4f36",
        "map-4": "#3f5a36",
        "map-5": "#6b4150",
        "map-6": "#34576a",
        "map-7": "#57562f",
        "footer-key-foreground": "#8ab4f0",
    },
)
LIGHT = Theme(
    name="orlop-light",
    dark=False,
    primary="#2b5c9e",
    secondary="#2f6f62",
    accent="#1f5fb0",
    foreground="#22272f",
    background="#fbfbfa",
    surface="#fbfbfa",
    panel="#eceef1",
    success="#1d6f35",
    warning="#875400",
    error="#b02a26",
    variables={
        "line": "#c9ced6",
        "faint": "#5d6673",
        "cursor": "#cfe0f5",
        "cursor-blurred": "#e4e8ee",
        "bar": "#7ba0cf",
        "added": "#1d6f35",
        "changed": "#875400",
        "deleted": "#b02a26",
        "link": "#0f6b73",
        "map-0": "#b5cdeb",
        "map-1": "#b3d9d0",
        "map-2": "#d6c5e6",
        "map-3": "#ecd2b4",
        "map-4": "#c5dfb6",
        "map-5": "#eec4ce",
        "map-6": "#b6d8e8",
        "map-7": "#e4e1ad",
        "footer-key-foreground": "#1f5fb0",
    },
)


def theme_for(environ: Mapping[str, str]) -> str:
    """The theme that goes with a terminal, as far as it says what its background is (rxvt's COLORFGBG).

    >>> theme_for({"COLORFGBG": "0;15"}), theme_for({})
    ('orlop-light', 'orlop-dark')
    """
    ground = environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT.name if ground in {"7", "15"} else DARK.name
