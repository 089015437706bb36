"""How `make docs` builds the pages: Sphinx, whose warnings are errors."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import emp_kernels

project = "emp_kernels"
version = release = emp_kernels.__version__
copyright = "the emp_kernels authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_mock_imports = ["ray", "streaming"]  # what two pages' modules import
autodoc_typehints = "none"  # docstrings say dtypes and shapes, signatures the rest
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "emp_kernels"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False

DOCS = Path(__file__).resolve().parent


def downloads(app, name, source):
    """Links to Markdown files of the repository that are no pages lead to the files."""

    def lead(link):
        target = (DOCS / name).parent.joinpath(link[2]).resolve()
        return link[0] if target.is_relative_to(DOCS) else f"{{download}}`{link[1]} <{link[2]}>`"

    source[0] = re.sub(r"\[([^\]]+)\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", lead, source[0])


def setup(app):
    app.connect("source-read", downloads)
