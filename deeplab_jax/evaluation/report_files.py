"""The folder of an evaluation report: a page, plots and tables."""

import csv
import io
import pathlib
from typing import TYPE_CHECKING

from deeplab_jax import visualization
from deeplab_jax.evaluation import report_page
from deeplab_jax.files import create_folder, write_atomically, write_json
from deeplab_jax.pretrained.sharing import REPORT_SCORES_FILE
from deeplab_jax.text import printable

if TYPE_CHECKING:
    from deeplab_jax.evaluation.report import Result

#: The page, which contains the plots and needs no other file.
PAGE = "report.html"


def write_report(folder: pathlib.Path, result: "Result") -> None:
    """Writes the report of an evaluation.

    The folder gets `report.html`, a page that contains the rest; `scores.json`; `confusion.csv` and `confusion.png`,
    the confusion matrix; `images.csv`, the score of every image, the worst first; `calibration.png`, the reliability
    diagram; and `trimap.png`, unless there are no boundaries. Files of an earlier report are replaced.

    Args:
      folder: the folder; it is created.
      result: an evaluation with details, see `deeplab_jax.evaluation.evaluator.Evaluator`.

    Raises:
      UserError: a file cannot be written.
    """
    scores, label_set = result.scores, result.label_set
    create_folder(folder, "the folder of the report")
    write_json(folder / REPORT_SCORES_FILE, result.values)
    names = [printable(name) for name in label_set.class_names]
    write_csv(
        folder / "confusion.csv",
        [["truth", *names], *([name, *row] for name, row in zip(names, scores["confusion"].tolist(), strict=True))],
    )
    images = sorted(scores["details"].images)
    write_csv(
        folder / "images.csv",
        [
            ["image", "mean_iou", "pixel_accuracy", "num_pixels"],
            *([printable(each.id), each.mean_iou, each.pixel_accuracy, each.num_pixels] for each in images),
        ],
    )
    plots = {name: folder / f"{name}.png" for name in ("confusion", "trimap", "calibration")}
    visualization.plot_confusion_matrix(scores["confusion"], label_set, plots["confusion"])
    visualization.plot_reliability(scores["calibration"], plots["calibration"])
    curves = {report_page.TRIMAP_TITLES[name]: curve for name, curve in scores["trimap"].items()}
    if curves:
        visualization.plot_trimap_curves(curves, plots["trimap"])
    else:
        plots.pop("trimap").unlink(missing_ok=True)  # an earlier report may have left it
    page = report_page.render(result, {name: path.read_bytes() for name, path in plots.items()})
    write_atomically(folder / PAGE, page.encode())


def write_csv(path: pathlib.Path, rows: list[list[str | int | float]]) -> None:
    """Writes a table as CSV.

    Raises:
      UserError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())
