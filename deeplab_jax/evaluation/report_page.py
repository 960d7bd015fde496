"""The page of an evaluation report: one HTML file that contains its images and runs no scripts."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from deeplab_jax import visualization
from deeplab_jax.data.images import encode_palette_png
from deeplab_jax.data.protocol import describe_protocol
from deeplab_jax.evaluation.metrics import ClassCounts
from deeplab_jax.labels import LabelSet
from deeplab_jax.text import printable

if TYPE_CHECKING:
    from deeplab_jax.evaluation.details import WorstImage
    from deeplab_jax.evaluation.report import Result

#: What the pixels of each trimap are near, by the names in `deeplab_jax.evaluation.details.TRIMAPS`.
TRIMAP_TITLES = {"ignored": "around ignored pixels", "labels": "around all changes of label"}

_CSS = pathlib.Path(__file__).with_suffix(".css")
_SHOWN_WIDTHS = (1, 2, 3, 5, 10, 20, 40)
_MOST_MISTAKES = 10
_JPEG_QUALITY = 88

# Nothing is loaded, even if a name got past the escaping.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(result: "Result", plots: Mapping[str, bytes]) -> str:
    """Returns the page.

    Args:
      result: an evaluation with details.
      plots: PNG files by name: `confusion`, `calibration` and optionally `trimap`.
    """
    scores = result.scores
    step = "" if result.step is None else f", step {result.step:,}"
    data = f"{result.config.data.name}, split {result.split}: {scores['num_images']:,} images"
    settings = (
        *describe_protocol(result.config),
        f"output stride {result.config.model.output_stride}",
        result.config.train.compute_dtype,
        f"ignored pixels: {result.config.eval.ignored_pixels}",
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(f"{result.name}: mean IoU {_percent(scores['mean_iou'])} %")}</title>
<style>
{_CSS.read_text()}</style>
</head>
<body>
<main>
<h1>{_text(result.name)}{step}</h1>
<p>{_text(data)}; {_text("; ".join(settings))}.</p>
{_headline(scores)}
{_class_section(result)}
{_confusion_section(scores["confusion"], result.label_set, plots["confusion"])}
<div class="two">
{_trimap_section(scores["trimap"], plots.get("trimap"))}
{_calibration_section(scores["calibration"], plots["calibration"])}
</div>
{_worst_section(scores["details"].worst, result.label_set)}
<section>
<h2>Settings</h2>
<details><summary>The whole config</summary>
<pre>{_text_block(json.dumps(result.values["config"], indent=1))}</pre></details>
</section>
</main>
</body>
</html>
"""


def _headline(scores: Mapping[str, Any]) -> str:
    shown = {
        "mean IoU": scores["mean_iou"],
        "pixel accuracy": scores["pixel_accuracy"],
        "mean Dice": scores["mean_dice"],
        "mean boundary IoU": scores["mean_boundary_iou"],
        "mean image IoU": scores["mean_image_iou"],
        "calibration error": scores["calibration"]["expected_calibration_error"],
    }
    cards = (
        f'<div class="score"><b>{_percent(value)}<small>%</small></b><span>{name}</span></div>'
        for name, value in shown.items()
    )
    return f'<div class="scores">{"".join(cards)}</div>'


def _class_section(result: "Result") -> str:
    scores, label_set = result.scores, result.label_set
    truth = scores["confusion"].sum(axis=1)
    columns = ("iou", "boundary_iou", "dice", "precision", "recall")
    rows = []
    for label, name in enumerate(label_set.class_names):
        iou, *others = (scores[f"per_class_{column}"][name] for column in columns)
        share = truth[label] / max(1, truth.sum())
        cells = [f'{_bar(iou)}<span class="value">{_percent(iou)}</span>', *map(_percent, others), _percent(share)]
        rows.append([_class_cell(label, label_set), *cells])
    means = [scores[name] for name in ("mean_iou", "mean_boundary_iou", "mean_dice", "mean_precision", "mean_accuracy")]
    foot = ["mean", *map(_percent, means), ""]
    head = ["class", "IoU", "boundary IoU", "Dice", "precision", "recall", "pixels"]
    return f"""<section>
<h2>Classes</h2>
<p>Percent. A dash: the class is absent. Pixels: share of the counted pixels.</p>
{_table(head, rows, foot=foot)}
</section>"""


def _confusion_section(confusion: Int64[np.ndarray, "classes classes"], label_set: LabelSet, plot: bytes) -> str:
    truth = ClassCounts.from_confusion(confusion).truth
    rows = [
        [
            _class_cell(true, label_set),
            _class_cell(predicted, label_set),
            f"{pixels:,}",
            _percent(pixels / truth[true]),
        ]
        for true, predicted, pixels in most_confused(confusion, _MOST_MISTAKES)
    ]
    head = ["truth", "prediction", "pixels", "% of the true class"]
    return f"""<section>
<h2>Confusion matrix</h2>
<p>Rows are true classes. Each row adds up to 100 %.</p>
<div class="scroll">{_plot(plot, "confusion matrix")}</div>
</section>
<section>
<h2>Most frequent mistakes</h2>
{_table(head, rows, style="names")}
</section>"""


def most_confused(confusion: Int64[np.ndarray, "classes classes"], count: int) -> list[tuple[int, int, int]]:
    """Returns the most frequent mistakes as (true class, predicted class, pixels), the most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(index, len(wrong)) for index in order.tolist()]
    return [(truth, predicted, int(wrong[truth, predicted])) for truth, predicted in pairs if wrong[truth, predicted]]


def _trimap_section(trimaps: Mapping[str, Mapping[str, list[Any]]], plot: bytes | None) -> str:
    if plot is None:
        return ""
    head = ["width", *(TRIMAP_TITLES[name] for name in trimaps)]
    rows = []
    for index, width in enumerate(next(iter(trimaps.values()))["widths"]):
        if width in _SHOWN_WIDTHS:
            rows.append([str(width), *(_percent(curve["mean_iou"][index]) for curve in trimaps.values())])
    return f"""<section>
<h2>Near boundaries</h2>
<p>Mean IoU of the labeled pixels within a distance of boundaries, in pixels.</p>
{_plot(plot, "trimap curve")}
{_table(head, rows)}
</section>"""


def _calibration_section(calibration: Mapping[str, Any], plot: bytes) -> str:
    error = _percent(calibration["expected_calibration_error"])
    return f"""<section>
<h2>Calibration</h2>
<p>Pixels by the probability of their predicted class. Below the dashed line, the network is overconfident. Expected
calibration error: {error}&nbsp;%.</p>
{_plot(plot, "reliability diagram")}
</section>"""


def _worst_section(worst: "list[WorstImage]", label_set: LabelSet) -> str:
    if not worst:
        return ""
    return f"""<section>
<h2>The {len(worst)} images with the lowest scores</h2>
<p>By the mean IoU over the classes in the label or the prediction of the image.</p>
{"".join(_worst_image(each, label_set) for each in worst)}
</section>"""


def _worst_image(worst: "WorstImage", label_set: LabelSet) -> str:
    score = worst.score
    panels = {
        "image": _jpeg(worst.image),
        "truth": _png(encode_palette_png(worst.label, label_set)),
        "prediction": _png(encode_palette_png(worst.prediction, label_set)),
        "mistakes": _jpeg(visualization.mark_errors(worst.image, worst.label, worst.prediction)),
    }
    figures = (
        f'<figure><img src="{source}" alt="{title}" loading="lazy"><figcaption>{title}</figcaption></figure>'
        for title, source in panels.items()
    )
    legend = (
        f"<span>{_class_cell(share.class_id, label_set)}</span>"
        for share in visualization.class_shares(np.concatenate([worst.label, worst.prediction]), label_set)
    )
    return f"""<div class="image">
<h3>{_text(score.id)}</h3>
<p>mean IoU {_percent(score.mean_iou)} %, pixel accuracy {_percent(score.pixel_accuracy)} %</p>
<div class="panels">{"".join(figures)}</div>
<div class="legend">{"".join(legend)}</div>
</div>
"""


def _class_cell(label: int, label_set: LabelSet) -> str:
    red, green, blue = label_set.color_table()[label].tolist()
    color = f'<i class="color" style="background:rgb({red},{green},{blue})"></i>'
    return color + _text(visualization.class_name(label, label_set))


def _table(head: list[str], rows: Iterable[list[str]], *, foot: list[str] | None = None, style: str = "") -> str:
    """Returns a table of cells that are HTML already."""

    def row(cells: list[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>\n"

    foot_rows = f"<tfoot>{row(foot)}</tfoot>" if foot else ""
    body = "".join(map(row, rows))
    return (
        f'<div class="scroll"><table class="{style}"><thead>{row(head, "th")}</thead><tbody>{body}</tbody>{foot_rows}'
        "</table></div>"
    )


def _bar(value: float | None) -> str:
    return f'<span class="bar"><i style="width:{100 * (value or 0):.1f}%"></i></span>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _text_block(text: str) -> str:
    return "\n".join(map(_text, text.splitlines()))


def _plot(content: bytes, title: str) -> str:
    with Image.open(io.BytesIO(content)) as image:
        width = image.width // 2  # two device pixels per pixel on sharp screens
    return f'<img class="plot" src="{_png(content)}" alt="{title}" width="{width}">'


def _png(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
