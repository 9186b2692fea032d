"""Sphinx settings of the documentation: `make docs`. Warnings are errors."""

from __future__ import annotations

from flotta import __version__

project = "Flotta"
author = "The Flotta authors"
copyright = "2026, The Flotta authors"
release = __version__
version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links into the source tree work in a checkout, not in the built pages

html_theme = "furo"
html_title = "Flotta"
html_show_sourcelink = False
