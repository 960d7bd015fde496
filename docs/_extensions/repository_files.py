"""Links to files of the repository become links to pages of the site, or downloads.

Pages and files link to each other by their paths in the repository, so the links also work on GitHub.
"""

import os
import pathlib
import re

from sphinx.application import Sphinx

DOCS = pathlib.Path(__file__).resolve().parents[1]
REPOSITORY = DOCS.parent

# Files outside `docs/` that `docs/<name>.md` includes.
INCLUDED = {
    REPOSITORY / "benchmarks" / "README.md": "benchmarks",
    REPOSITORY / "benchmarks" / "RESULTS.md": "results",
    REPOSITORY / "CHANGELOG.md": "changelog",
}
NOTEBOOKS = REPOSITORY / "notebooks"  # `docs/notebooks` links to it

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def links_from_docs(text: str, folder: pathlib.Path, page: pathlib.Path) -> str:
    """Rewrites the relative links of a file in `folder` for `page`, which shows the file."""

    def rewrite(match: re.Match) -> str:
        target = (folder / match[1]).resolve()
        if target in INCLUDED:
            target = DOCS / f"{INCLUDED[target]}.md"
        elif target.parent == NOTEBOOKS:
            target = DOCS / "notebooks" / target.name
        return os.path.relpath(target, page.parent)

    return _LINK.sub(rewrite, text)


def _read_page(app: Sphinx, name: str, content: list[str]) -> None:
    page = pathlib.Path(app.env.doc2path(name))
    content[0] = links_from_docs(content[0], page.parent.resolve(), page)


def _read_included(app: Sphinx, path: pathlib.Path, name: str, content: list[str]) -> None:
    file = (DOCS / path).resolve()
    content[0] = links_from_docs(content[0], file.parent, pathlib.Path(app.env.doc2path(name)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    return {"parallel_read_safe": True}
