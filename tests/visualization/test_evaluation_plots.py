"""Plots of an evaluation show the numbers they are given."""

import numpy as np

from deeplab_jax import visualization
from deeplab_jax.labels import IGNORE_COLOR, LabelSet

LABELS = LabelSet.from_names(("road", "$x^$", "a\x1b[2Jb"))


def test_the_confusion_matrix_shows_shares_of_each_true_class(tmp_path):
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 999]])
    figure = visualization.plot_confusion_matrix(confusion, LABELS, tmp_path / "confusion.png")
    axes, _ = figure.axes  # the other one is the color bar
    (image,) = axes.images
    np.testing.assert_allclose(np.ma.getdata(image.get_array())[[0, 2]], [[75, 25, 0], [0.1, 0, 99.9]])
    assert np.ma.getmaskarray(image.get_array())[1].all() or np.isnan(np.ma.getdata(image.get_array())[1]).all()
    names = ["road", "$x^$", r"a\x1b[2Jb"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    # Shares that round to zero have no number.
    assert sorted((*text.get_position(), text.get_text()) for text in axes.texts) == [
        (0, 0, "75"), (1, 0, "25"), (2, 2, "100"),
    ]  # fmt: skip
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_matrix_of_many_classes_has_no_numbers():
    labels = LabelSet.from_names(tuple(f"class {index}" for index in range(30)))
    figure = visualization.plot_confusion_matrix(np.eye(30, dtype=np.int64), labels)
    assert not figure.axes[0].texts


def test_trimap_curves_show_percent():
    curves = {"a": {"widths": [1, 2, 5], "mean_iou": [0.1, 0.2, 0.5]}, "$b^": {"widths": [1], "mean_iou": [1.0]}}
    figure = visualization.plot_trimap_curves(curves)
    (axes,) = figure.axes
    first, second = axes.lines
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([1, 2, 5], [10, 20, 50])
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([1], [100])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "$b^"]


def test_the_reliability_diagram_leaves_out_empty_bins():
    calibration = {"pixels": [0, 1, 3], "confidence": [None, 0.5, 0.9], "accuracy": [None, 0.25, 1.0]}
    (axes,) = visualization.plot_reliability(calibration).axes
    _, accuracy = axes.lines
    assert (list(accuracy.get_xdata()), list(accuracy.get_ydata())) == ([0.5, 0.9], [0.25, 1.0])
    assert [bar.get_height() for bar in axes.patches] == [0, 0.25, 0.75]


def test_mistakes_are_red_and_ignored_pixels_have_their_color():
    image = np.full((1, 3, 3), 100, np.uint8)
    marked = visualization.mark_errors(image, np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 0]], np.uint8))
    right, wrong, ignored = marked[0].tolist()
    assert right == [178, 178, 178]  # half way to white
    assert wrong[0] > 180 > 100 > wrong[1] == wrong[2]
    assert tuple(ignored) == IGNORE_COLOR
