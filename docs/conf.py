"""How Sphinx builds these pages: `sphinx-build -W docs site`, to be read without a network."""

import sys
from pathlib import Path

from pytest_infserver import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "pytest-infserver"
release = __version__
author = "the maintainers of pytest-infserver"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
html_copy_source = False
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
