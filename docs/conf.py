"""How Sphinx builds the documentation; `tools/docs` runs it.  Nothing is fetched while it does."""

from __future__ import annotations

from orlop import __version__

project = "orlop"
author = "the orlop authors"
project_copyright = "2026, the orlop authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_*"]
root_doc = "index"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

smartquotes = False  # or --name is set with a dash
default_role = "literal"  # docstrings put names between single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False  # the table of contents is resolved for every page: a third of the build
autodoc_mock_imports = ["pytest"]  # of the plugin

html_theme = "furo"
html_title = f"orlop {version}"
html_static_path = []
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
highlight_language = "none"  # blocks that do not say theirs are text
pygments_style = "friendly"
pygments_dark_style = "github-dark"
