"""The site of the documents, built by Sphinx, MyST and Furo:

    uv run --group docs sphinx-build -W --keep-going -c docs/site . build/site

Its source is the Markdown of the repository where it lies, so a link between documents is the same link there. Nothing
is fetched, and nothing is imported of what is documented.
"""

import gc
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from exported import describe_names
from linked import link_files, write_files
from nav import add_navigation

gc.disable()  # Trees of documents live until the end: to look for garbage among them took a quarter of the time.

project = "omni"
root_doc = "docs/index"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**.md", "packages/*/README.md", "packages/*/CHANGELOG.md", "*/README.md"]
exclude_patterns = [".*", "build", "runs", "tests", "packages/*/src", "packages/*/tests", "**/__pycache__", "**/.*"]

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]
"""Python with `...` for what is left out, and JSON with it, are shown as they are."""
highlight_language = "none"
add_module_names = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries = False
"""Each page has the contents of all others beside it, which took a third of the time. A module lists its names."""
smartquotes = False

html_theme = "furo"
html_title = "omni"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
html_use_index = True


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what is made of other files: navigation, and the names of a package. Effect: changes `source`."""
    if page == root_doc:
        folder = str(Path(page).parent)
        guides = [other.removeprefix(f"{folder}/") for other in app.env.found_docs if str(Path(other).parent) == folder]
        source[0] = add_navigation(source[0], sorted({*guides} - {Path(page).name}))
    if page == "CHANGELOG":
        changes = sorted(other for other in app.env.found_docs if other.endswith("/CHANGELOG"))
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *changes, "```", ""])
    folder, _, name = page.rpartition("/")
    for package in (Path(app.srcdir) / folder / "src").glob("*/__init__.py") if name == "README" else ():
        source[0] += f"\n{describe_names(package.parent)}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    app.connect("doctree-read", link_files, priority=100)  # Before what is linked is copied as a download.
    app.connect("build-finished", write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
