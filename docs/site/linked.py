"""Files that pages link to, as pages: what is a file beside it on a code host is a page of its text on the site.

So a link of the documents leads somewhere in both places, and needs no address of a repository.
"""

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

_MARK: Final = "file"
_LANGUAGES: Final = {".py": "python", ".json": "json", ".yaml": "yaml", ".toml": "toml"}
_TEXT: Final = (*_LANGUAGES, ".md", ".txt", "")
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - omni</title>
<link rel="stylesheet" href="{root}_static/pygments.css">
<link rel="stylesheet" href="{root}_static/file.css">
</head>
<body>
<p><a href="{root}docs/index.html">omni</a></p>
<h1>{title}</h1>
{body}
</body>
</html>
"""
"""Without navigation, which would take longer to write than all else of it."""


def link_files(app: Sphinx, tree: nodes.document) -> None:
    """Have the links to files and folders in `tree` lead to their pages. Effect: changes `tree`."""
    page = app.env.docname
    for node in [*tree.findall(addnodes.download_reference), *tree.findall(addnodes.pending_xref)]:
        target = os.path.normpath(Path(page).parent / node["reftarget"])
        is_folder = isinstance(node, addnodes.pending_xref) and (Path(app.srcdir) / target).is_dir()
        if is_folder or isinstance(node, addnodes.download_reference):
            uri = app.builder.get_relative_uri(page, f"files/{target}")
            link = nodes.reference("", "", *node.children, internal=True, refuri=uri)
            link[_MARK] = target
            node.replace_self(link)


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Write a page for each file that a page links to; of a folder, for each text in it. Effect: reads and writes."""
    if error is not None:
        return
    root = Path(app.srcdir)
    linked = {
        link[_MARK]
        for page in app.env.found_docs
        for link in app.env.get_doctree(page).findall(nodes.reference)
        if _MARK in link
    }
    folders = {target for target in linked if (root / target).is_dir()}
    for target in sorted(folders):
        names = sorted(_texts(root / target))
        items = "".join(f'<li><a href="{Path(target).name}/{name}.html">{escape(name)}</a></li>\n' for name in names)
        _write(app, target, f"<ul>\n{items}</ul>")
    for target in sorted(
        linked - folders | {f"{folder}/{name}" for folder in folders for name in _texts(root / folder)}
    ):
        language = _LANGUAGES.get(Path(target).suffix, "text")
        _write(app, target, app.builder.highlighter.highlight_block((root / target).read_text(), language))


def _texts(folder: Path) -> Iterator[str]:
    return (file.name for file in folder.iterdir() if file.is_file() and file.suffix in _TEXT)


def _write(app: Sphinx, target: str, body: str) -> None:
    file = Path(app.outdir) / "files" / f"{target}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_PAGE.format(title=escape(target), root="../" * (1 + target.count("/")), body=body))
