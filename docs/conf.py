"""The documentation site: `make site` builds it, and takes warnings for errors."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import families  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import jaxdecode  # noqa: E402

project = "jaxdecode"
author = "the authors of jaxdecode"
version = release = jaxdecode.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxdecode {release}"
html_copy_source = False
# Notebooks are shown as they are; tests/test_notebooks.py runs them.
nb_execution_mode = "off"
# Anchors for headings, so that a page can be linked to in the middle.
myst_heading_anchors = 3
# Types are in the signatures; docstrings say what they mean.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True


def add_other_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages that no list of the index names come last, so that a new page needs no entry."""
    if docname != "index":
        return
    named = set(re.findall(r"^(\w+)$", source[0], flags=re.MULTILINE))
    others = sorted({path.stem for path in Path(app.srcdir).glob("*.md")} - named - {"index"})
    source[0] = source[0].replace("OTHER-PAGES", "\n".join(others))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: families.write_pages())
    app.connect("source-read", add_other_pages)
