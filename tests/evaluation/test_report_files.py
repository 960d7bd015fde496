"""The folder of a report: a page without foreign parts, and tables that add up."""

import csv
import html.parser
import json

import numpy as np
import pytest

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics, report_page
from deeplab_jax.evaluation.details import Details
from deeplab_jax.evaluation.report import Result
from deeplab_jax.evaluation.report_files import write_report
from deeplab_jax.labels import LabelSet

NAMES = ("road <b>", "$x^$ & co", "\x1b[2Jsky", "absent")
LABELS = LabelSet.from_names(NAMES)


def result(name="runs/<script>\x1b[1m", ignored=True, images=3):
    rng = np.random.default_rng(0)
    details, total = Details(4), np.zeros((4, 4), np.int64)
    for index in range(images):
        label = np.repeat(rng.integers(0, 3, (3, 30), np.uint8), 8, axis=0)
        wrong = rng.random(label.shape) < 0.2 * index
        prediction = np.where(wrong, (label + 1) % 3, label).astype(np.uint8)
        label[0] = 255 if ignored else label[0]
        image = rng.integers(0, 256, (*label.shape, 3), np.uint8)
        details.add_image(f"street <i>{index}</i>", image, label, prediction, rng.random(label.shape, np.float32))
        np.add.at(total, (label[label < 255], prediction[label < 255]), 1)
    scores = metrics.scores(total, NAMES) | details.scores(NAMES)
    scores |= {"loss": 0.5, "num_images": images, "gallery": [], "details": details, "confusion": total}
    config = base_config()
    config.data.name = "folder"
    return Result(name, scores, LABELS, config, "val", step=1200)


class Page(html.parser.HTMLParser):
    """Collects the tags, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words, self.open = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def evaluated():
    return result()


@pytest.fixture(scope="module")
def written(tmp_path_factory, evaluated):
    folder = tmp_path_factory.mktemp("evaluation") / "report"
    write_report(folder, evaluated)
    return folder


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_page_is_well_formed_and_loads_nothing(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "b>", "object"}
    assert len(page.sources) == 3 + 4 * 3  # the plots, and four panels per image
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_names_on_the_page_are_plain_text(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    words = Page(text).words
    for name in (r"runs/<script>\x1b[1m, step 1,200", "road <b>", "$x^$ & co", r"\x1b[2Jsky", "street <i>0</i>"):
        assert name in words, name
    assert "\x1b" not in text


def test_the_page_has_the_scores(written, evaluated):
    text = " ".join(Page((written / "report.html").read_text(encoding="utf-8")).words)
    for name in ("mean_iou", "pixel_accuracy", "mean_boundary_iou", "mean_image_iou", "mean_dice"):
        assert f"{100 * evaluated.scores[name]:.2f}" in text, name
    for name in NAMES[:3]:
        assert f"{100 * evaluated.scores['per_class_boundary_iou'][name]:.2f}" in text
    assert f"{100 * evaluated.scores['trimap']['ignored']['mean_iou'][4]:.2f}" in text


def test_tables_hold_the_counts_and_the_scores_of_images(written, evaluated):
    head, *body = rows(written / "confusion.csv")
    assert head == ["truth", "road <b>", "$x^$ & co", r"\x1b[2Jsky", "absent"]
    assert [row[0] for row in body] == head[1:]
    np.testing.assert_array_equal([list(map(int, row[1:])) for row in body], evaluated.scores["confusion"])
    head, *body = rows(written / "images.csv")
    assert head == ["image", "mean_iou", "pixel_accuracy", "num_pixels"]
    assert [row[0] for row in body] == [f"street <i>{index}</i>" for index in (2, 1, 0)]  # the worst first
    assert [float(row[1]) for row in body] == sorted(score.mean_iou for score in evaluated.scores["details"].images)
    assert sum(int(row[3]) for row in body) == evaluated.scores["num_pixels"]
    assert json.loads((written / "scores.json").read_text()) == json.loads(json.dumps(evaluated.values))
    for name in ("confusion", "trimap", "calibration"):
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_replaces_an_earlier_one(tmp_path):
    write_report(tmp_path, result())
    flat = result("second", ignored=False, images=1)
    flat.scores["trimap"].clear()
    write_report(tmp_path, flat)
    assert not (tmp_path / "trimap.png").exists()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "second" in text
    assert "Near boundaries" not in text
    assert len(rows(tmp_path / "images.csv")) == 2


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder of the report"):
        write_report(tmp_path / "file", result())


def test_most_frequent_mistakes():
    confusion = np.array([[9, 4, 0], [7, 1, 0], [4, 0, 5]])
    assert report_page.most_confused(confusion, 2) == [(1, 0, 7), (0, 1, 4)]
    assert report_page.most_confused(confusion, 9) == [(1, 0, 7), (0, 1, 4), (2, 0, 4)]
    assert confusion.trace() == 15  # unchanged
