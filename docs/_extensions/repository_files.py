"""Shows notebooks and other files of the repository as pages, and adapts the links between them.

Pages and files link to each other by their paths in the repository, so the links also work on GitHub. On the site they
lead to pages, or to downloads.
"""

import os
import pathlib
import re
import shutil

from sphinx.application import Sphinx

DOCS = pathlib.Path(__file__).resolve().parents[1]
REPOSITORY = DOCS.parent

# Files outside `docs/` that `docs/<name>.md` includes.
INCLUDED = {
    REPOSITORY / "benchmarks" / "README.md": "benchmarks",
    REPOSITORY / "benchmarks" / "RESULTS.md": "results",
    REPOSITORY / "CHANGELOG.md": "changelog",
    REPOSITORY / "CONTRIBUTING.md": "contributing",
    REPOSITORY / "deeplab_jax" / "ops" / "cpu" / "README.md": "cpu_operations",
}
# Sphinx reads only files below `docs/`, so notebooks are copied there. Git ignores the copies.
NOTEBOOKS, COPIES = REPOSITORY / "notebooks", DOCS / "notebooks"

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def links_from_docs(text: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """Rewrites the relative links of a file in `folder` for `page`, which shows the file."""

    def rewrite(match: re.Match) -> str:
        target = (folder / match[1]).resolve()
        if target in INCLUDED:
            target = DOCS / f"{INCLUDED[target]}.md"
        elif target.parent == NOTEBOOKS:
            target = COPIES / target.name
        return os.path.relpath(target, page.parent)

    return _LINK.sub(rewrite, text)


def _copy_notebooks(app: Sphinx) -> None:
    COPIES.mkdir(exist_ok=True)
    for copy in COPIES.iterdir():
        if not (NOTEBOOKS / copy.name).is_file():
            copy.unlink()
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        copy = COPIES / notebook.name
        if not copy.is_file() or copy.read_bytes() != notebook.read_bytes():  # else Sphinx would read it again
            shutil.copyfile(notebook, copy)


def _read_page(app: Sphinx, name: str, content: list[str]) -> None:
    page = pathlib.Path(app.env.doc2path(name))
    folder = NOTEBOOKS if page.parent == COPIES else page.parent
    content[0] = links_from_docs(content[0], folder, page)


def _read_included(app: Sphinx, path: pathlib.Path, name: str, content: list[str]) -> None:
    file = (DOCS / path).resolve()
    content[0] = links_from_docs(content[0], file.parent, pathlib.Path(app.env.doc2path(name)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", _copy_notebooks)
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    return {"parallel_read_safe": True}
