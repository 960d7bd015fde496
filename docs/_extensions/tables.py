"""Directives for tables that the site reads from the package: config fields, configs, presets and the papers' rows."""

from collections import Counter
from collections.abc import Iterable

import config_fields
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from deeplab_jax import config as config_lib
from deeplab_jax import papers
from deeplab_jax.pretrained import list_presets


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    headings = list(headings)
    cells = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |" for row in cells]


class _Table(SphinxDirective):
    """Replaces the directive with the Markdown that `lines` returns."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.Element()
        self.state.nested_parse(StringList(self.lines(), source=self.get_source_info()[0]), 0, parent)
        for table in parent.findall(nodes.table):
            table["classes"].append(self.name)  # for site.css
        return parent.children


class ConfigFields(_Table):
    """The fields of one config group: name, default and meaning."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Returns a row for each field."""
        (group,) = self.arguments
        fields = [field for field in config_fields.read_fields() if field.path.startswith(f"{group}.")]
        if not fields:
            raise self.error(f"the config has no group {group}")
        rows = [(f"`{field.path.removeprefix(f'{group}.')}`", _default(field), field.meaning) for field in fields]
        return markdown_table((f"`{group}.`", "default", "meaning"), rows)


class Configs(_Table):
    """The built-in configs: summary, arguments, data and score, from their headers."""

    def lines(self) -> list[str]:
        """Returns a list item for each config, sorted by name. Their names are too long for a table."""
        lines = []
        for config in config_lib.list_configs():
            facts = [config.summary, config.arguments, f"Data: {config.data}.", f"Score: {config.score}."]
            if config.hardware:
                facts.append(f"Hardware: {config.hardware}; commit `{config.commit}`.")
            lines += [f"- **`{config.name}`**", *(f"  <br>{fact}" for fact in facts)]
        return lines


class Presets(_Table):
    """The presets of one task: name, backbone, published score and its source, size and license of the file."""

    required_arguments = 1
    final_argument_whitespace = True

    def lines(self) -> list[str]:
        """Returns a row for each preset, in the order of presets.toml."""
        (task,) = self.arguments
        chosen = [preset for preset in list_presets() if preset.task == task]
        if not chosen:
            raise self.error(f"no preset has the task {task}")
        rows = [
            (
                f"`{preset.name}`\n`{preset.backbone}`",
                f"{preset.score}\n{preset.score_source}" if preset.score else "none published",
                f"{preset.size_text}\n{preset.license}",
            )
            for preset in chosen
        ]
        return markdown_table(("preset, backbone", "score as published, by", "file"), rows)


class PaperStates(_Table):
    """The states of the papers' rows: meaning and number of rows, by publication."""

    def lines(self) -> list[str]:
        """Returns a row for each state."""
        counts = Counter((row.paper, papers.state_of(row)) for row in papers.list_rows())
        rows = [
            (state, meaning, *(str(counts[paper, state] or "–") for paper in papers.PAPERS))
            for state, meaning in papers.STATES.items()
        ]
        return markdown_table(("state", "meaning", *(f"`{paper}`" for paper in papers.PAPERS)), rows)


class PaperRows(_Table):
    """The rows of a publication: what they are, published scores and multiply-adds, state."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Returns a row for each row, in the order of the publication."""
        return markdown_table(
            ("row", "table", "mean IoU, %", "multiply-adds", "state"),
            [
                (
                    f"`{row.id}`\n{row.name}",
                    f"{row.table}: {row.title}",
                    "–" if "mean_iou" not in row.published else f"{row.published['mean_iou']:.2f}",
                    "–" if row.multiply_adds is None else f"{row.multiply_adds:,.2f} G",
                    papers.state_of(row) + (f": {row.cannot}" if row.cannot else ""),
                )
                for row in papers.list_rows(self.arguments[0])
            ],
        )


class PaperMeasurements(_Table):
    """The scores measured here, beside the published ones and those of the original program on the same images."""

    def lines(self) -> list[str]:
        """Returns a row for each measurement."""
        rows = []
        for row in papers.list_rows():
            if measured := papers.measurement_of(row):
                original, published = measured.original.get("mean_iou"), row.published.get("mean_iou")
                rows.append(
                    (
                        f"`{row.id}`\n{measured.data}",
                        "\n".join(
                            [
                                f"{measured.scores['mean_iou']:.2f}",
                                *(f"{name}: {score:.2f}" for name, score in measured.variations.items()),
                            ]
                        ),
                        "–" if original is None else f"{original:.2f}\n{measured.original_source}",
                        "–" if published is None else f"{published:.2f}\n{row.images:,} images",
                        f"`{measured.command}`\n{measured.hardware}, commit `{measured.commit}`",
                    )
                )
        return markdown_table(("row, images", "mean IoU here, %", "the original", "published", "how"), rows)


def _default(field: config_fields.DocumentedField) -> str:
    return f"unset ({field.type})" if field.default is None else f"`{field.default!r}`"


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    directives = {
        "config-fields": ConfigFields,
        "configs": Configs,
        "presets": Presets,
        "paper-states": PaperStates,
        "paper-rows": PaperRows,
        "paper-measurements": PaperMeasurements,
    }
    for name, directive in directives.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
