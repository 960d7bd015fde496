"""Directives for tables that are read from the package when the site is built: config fields, configs and presets."""

import ast
import pathlib
from collections.abc import Iterable

import config_fields
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeplab_jax import config as config_lib
from deeplab_jax.pretrained import presets


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    headings = list(headings)
    cells = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in cells]


class _Table(SphinxDirective):
    """Parses what `lines` returns as Markdown, in the place of the directive."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.Element()
        self.state.nested_parse(StringList(self.lines(), source=self.get_source_info()[0]), 0, parent)
        for table in parent.findall(nodes.table):
            table["classes"].append(self.name)  # for site.css
        return parent.children


class ConfigFields(_Table):
    """The fields of one group of the config: name, default and meaning."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """A row for each field."""
        (group,) = self.arguments
        fields = [field for field in config_fields.read_fields() if field.path.startswith(f"{group}.")]
        if not fields:
            raise self.error(f"the config has no group {group}")
        rows = [(f"`{field.path.removeprefix(f'{group}.')}`", _default(field), field.meaning) for field in fields]
        return markdown_table((f"`{group}.`", "default", "meaning"), rows)


class Configs(_Table):
    """The configs of the package: the first sentence of each one's docstring, and its arguments."""

    def lines(self) -> list[str]:
        """A row for each file, in the order of their names."""
        rows = []
        for path in sorted(pathlib.Path(config_lib.__file__).parents[1].glob("configs/*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            get_config = next(node for node in tree.body if getattr(node, "name", None) == "get_config")
            what = ast.get_docstring(tree).partition("\n\n")[0]
            rows.append((f"`{path.stem}`", f"{' '.join(what.split())}\n{_arguments(get_config)}"))
        return markdown_table(("config", "what, and its arguments"), rows)


class Presets(_Table):
    """The presets of one task: name, network, published score with its source, size and license of the file."""

    required_arguments = 1
    final_argument_whitespace = True

    def lines(self) -> list[str]:
        """A row for each preset, in the order of presets.toml."""
        (task,) = self.arguments
        presets = [preset for preset in presets.load_table().values() if preset.task == task]
        if not presets:
            raise self.error(f"no preset has the task {task}")
        rows = [
            (
                f"`{preset.name}`\n`{preset.backbone}`",
                f"{preset.score}\n{preset.score_source}" if preset.score else "none published",
                f"{preset.size_in_words}\n{preset.license}",
            )
            for preset in presets
        ]
        return markdown_table(("preset, backbone", "score as published, by", "file"), rows)


def _arguments(get_config: ast.FunctionDef) -> str:
    return " ".join(ast.get_docstring(get_config).split())


def _default(field: config_fields.Field) -> str:
    return f"unset ({field.type})" if field.default is None else f"`{field.default!r}`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    for name, directive in {"config-fields": ConfigFields, "configs": Configs, "presets": Presets}.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
