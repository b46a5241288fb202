"""A report: all that `orlop.explorer.survey` tells of an image or a root, as one page of HTML.

The page is whole by itself: it asks for nothing from anywhere, and its own policy (CSP) lets it run no script
and take no style but the two that are in it.  It can be read without the script.  Nothing of an image
becomes markup (`orlop.explorer.page.text`).  The same survey and tree give the same bytes.

However large the image, the page is not: lists are cut off, and say so.  `MOST` is what it never exceeds.
"""

from __future__ import annotations

from orlop.explorer.page.document import MOST, render

__all__ = ["MOST", "render"]
