"""Colors, files, legends and galleries, checked by their pixels."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import visualization
from deeplab_jax.errors import UserError
from deeplab_jax.labels import CAMVID, IGNORE_COLOR, VOC, LabelSet
from deeplab_jax.visualization import overlays
from tests.conftest import scene


def rendered(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


def texts(figure) -> list[str]:
    """Headers and legend entries of a figure, in drawing order."""
    return [text.get_text() for text in figure.texts] + [
        text.get_text() for legend in figure.legends for text in legend.get_texts()
    ]


def test_colorize_uses_the_palette_of_the_label_set():
    label_map = np.array([[0, 15, 255]], np.uint8)
    expected = [[(0, 0, 0), (192, 128, 128), (224, 224, 192)]]  # as in every VOC mask file
    np.testing.assert_array_equal(visualization.colorize(label_map, VOC), expected)
    np.testing.assert_array_equal(visualization.colorize(label_map[:, :1], CAMVID), [[(128, 128, 128)]])


def test_overlay_keeps_the_background_and_tints_other_classes():
    image = np.full((1, 3, 3), 100, np.uint8)
    label_map = np.array([[0, 15, 255]], np.uint8)
    tinted = visualization.overlay(image, label_map, VOC, opacity=0.25)
    np.testing.assert_array_equal(tinted, [[(100, 100, 100), (123, 107, 107), IGNORE_COLOR]])
    np.testing.assert_array_equal(image, 100)


def test_overlay_tints_a_first_class_that_is_not_a_background():
    image, label_map = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    np.testing.assert_array_equal(visualization.overlay(image, label_map, CAMVID, opacity=1), np.full((2, 2, 3), 128))


def test_palette_png_contains_class_ids_and_shows_colors(tmp_path):
    label_map = np.array([[*range(21), 255]], np.uint8).repeat(2, axis=0)
    path = tmp_path / "mask.png"
    visualization.save_palette_png(path, label_map, VOC)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), label_map)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), visualization.colorize(label_map, VOC))


def test_save_image_round_trips(tmp_path):
    image, _ = scene(3)
    visualization.save_image(tmp_path / "a.png", image)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_cannot_be_written_is_a_user_error_and_leaves_nothing(tmp_path):
    image, label_map = scene(3)
    with pytest.raises(UserError, match="cannot write .*missing.*: No such file or directory"):
        visualization.save_image(tmp_path / "missing" / "a.png", image)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="folder.png"):
        visualization.save_palette_png(tmp_path / "folder.png", label_map, VOC)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_legend_lists_present_classes_largest_first(monkeypatch):
    drawn = []
    draw_text = overlays.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        overlays.ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, **kw: drawn.append(text) or draw_text(self, xy, text, **kw),
    )
    label_map = np.zeros((100, 100), np.uint8)
    label_map[:30], label_map[30:32], label_map[99, 99] = 15, 255, 8
    image = np.full((100, 100, 3), 200, np.uint8)
    with_legend = visualization.add_legend(image, label_map, VOC)
    assert drawn == ["background 68.0%", "person 30.0%", "unlabeled 2.0%", "cat <0.1%"]
    colors = {tuple(color) for color in with_legend[100:].reshape(-1, 3).tolist()}
    assert {VOC.palette[0], VOC.palette[15], VOC.palette[8], IGNORE_COLOR} <= colors
    assert VOC.palette[1] not in colors


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 60), (200, 900), (1200, 800)])
def test_legend_keeps_the_image_and_has_room_for_its_text(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    label_map = np.arange(height * width, dtype=np.int64).reshape(height, width) % 21
    with_legend = visualization.add_legend(image, label_map.astype(np.uint8), VOC)
    left = (with_legend.shape[1] - width) // 2
    np.testing.assert_array_equal(with_legend[:height, left : left + width], image)
    np.testing.assert_array_equal(with_legend[height:, -1], 255)  # no text is cropped at the right
    np.testing.assert_array_equal(with_legend[-1], 255)  # or at the bottom
    assert with_legend.shape[0] > height + 13


def test_legend_refuses_values_that_are_not_class_ids():
    with pytest.raises(ValueError, match="label 77 is not one of the 21 classes"):
        visualization.add_legend(np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 77, np.uint8), VOC)


def test_gallery_strip_puts_rows_of_one_height_side_by_side():
    small, large = np.full((10, 20, 3), 50, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    truths = [np.full((10, 20), 15, np.uint8), np.full((40, 40), 255, np.uint8)]
    predictions = [np.full((10, 20), 8, np.uint8), np.full((40, 40), 0, np.uint8)]
    strip = visualization.gallery_strip([small, large], truths, predictions, VOC, height=30)
    assert strip.shape == (64, 3 * 60 + 2 * 4, 3)
    assert strip.dtype == np.uint8
    for box, color in {
        (0, 30, 0, 60): (50,) * 3,
        (0, 30, 64, 124): VOC.palette[15],
        (0, 30, 128, 188): VOC.palette[8],
        (34, 64, 0, 30): (90,) * 3,
        (34, 64, 64, 94): IGNORE_COLOR,
        (34, 64, 128, 158): VOC.palette[0],
        (34, 64, 158, 188): (255,) * 3,
    }.items():
        top, bottom, left, right = box
        assert np.unique(strip[top:bottom, left:right].reshape(-1, 3), axis=0).tolist() == [list(color)]


def test_gallery_shows_images_masks_and_the_classes_in_them():
    images = np.full((4, 24, 32, 3), 77, np.uint8)
    truth = np.zeros((4, 24, 32, 1), np.int64)
    truth[:, 4:12, 4:12] = 15
    truth[:, 12:14, 4:12] = 255
    prediction = np.full((4, 24, 32), 8, np.int32)
    figure = visualization.plot_segmentation_mask_gallery(images, truth, prediction, rows=2, cols=2, scale=1)
    assert len(figure.axes) == 12
    assert texts(figure) == 2 * ["image", "truth", "prediction"] + ["background", "cat", "person", "unlabeled"]
    colors = {tuple(color) for color in rendered(figure).reshape(-1, 3).tolist()}
    assert {(77, 77, 77), VOC.palette[15], VOC.palette[8], VOC.palette[0], IGNORE_COLOR} <= colors


def test_gallery_has_no_margin():
    figure = visualization.plot_segmentation_mask_gallery(np.full((2, 60, 80, 3), 99, np.uint8), rows=1, cols=2)
    pixels = rendered(figure)
    assert pixels.shape[0] == 300  # a row is `scale` = 3 inches high, at 100 pixels an inch
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 99).all(axis=-1).mean() > 0.9  # but for the gap between the cells


@pytest.mark.parametrize("cols", [None, 1, 4, 9])
def test_gallery_is_at_most_a_page_wide(cols):
    images = np.zeros((9, 30, 40, 3), np.uint8)
    masks = np.zeros((9, 30, 40), np.uint8)
    figure = visualization.plot_segmentation_mask_gallery(images, masks, masks, cols=cols)
    assert figure.get_size_inches()[0] <= 16.01
    assert len(figure.axes) == 27


def test_gallery_keeps_its_scale_if_possible_and_is_not_too_tall():
    def inches(count, **masks):
        masks = {name: np.zeros((count, 30, 40), np.uint8) for name in masks}
        return visualization.plot_segmentation_mask_gallery(
            np.zeros((count, 30, 40, 3), np.uint8), **masks
        ).get_size_inches()

    assert inches(9) == pytest.approx([3 * 4, 3 * 3], abs=0.5)  # panels of 4 by 3 inches, and gaps
    assert inches(1, y_true=True, y_pred=True) == pytest.approx([3 * 4, 3], abs=0.6)  # and the legend
    for count in (2, 8):
        width, height = inches(count, y_true=True, y_pred=True)
        assert height < 1.4 * width


def test_gallery_is_limited_to_its_grid_and_accepts_images_of_any_sizes(tmp_path):
    scenes = [scene(seed, height=30 + 7 * seed, width=50 - 5 * seed) for seed in range(5)]
    images, masks = zip(*scenes, strict=True)
    path = tmp_path / "gallery.png"
    figure = visualization.plot_segmentation_mask_gallery(list(images), list(masks), rows=1, cols=3, scale=1, path=path)
    assert len(figure.axes) == 6
    assert path.read_bytes() == figure._repr_png_()


def test_gallery_scales_the_value_range():
    images = np.array([-1.0, 0.5], np.float32).reshape(2, 1, 1, 1) * np.ones((1, 8, 8, 3), np.float32)
    figure = visualization.plot_segmentation_mask_gallery(images, value_range=(-1, 1), scale=1)
    assert {tuple(color) for color in rendered(figure).reshape(-1, 3).tolist()} >= {(0, 0, 0), (191, 191, 191)}


IMAGES = np.zeros((2, 4, 6, 3), np.uint8)
MASKS = np.zeros((2, 4, 6), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, np.zeros((2, 4, 6, 21))), r"y_true has masks of shape \(4, 6, 21\): one-hot"),
        ((IMAGES, None, MASKS[:1]), "y_pred has 1 masks for 2 images"),
        ((IMAGES, MASKS[:, :3]), r"y_true has a mask of shape \(3, 6\) for an image of shape \(4, 6, 3\)"),
        ((IMAGES, MASKS[0]), "y_true has 4 masks for 2 images"),
        ((IMAGES, MASKS + 0.5), "y_true contains values that are not class ids"),
        ((IMAGES, MASKS - 1.0), "y_true contains values that are not class ids"),
        ((IMAGES, np.full(MASKS.shape, math.nan)), "y_true contains values that are not class ids"),
        ((IMAGES, MASKS + 77), "label 77 is not one of the 21 classes"),
        ((IMAGES[0],), r"images must be RGB of shape \(height, width, 3\), not \(6, 3\)"),
        ((IMAGES[..., 0],), r"images must be RGB"),
        (([],), "images is empty"),
    ],
)
def test_gallery_names_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        visualization.plot_segmentation_mask_gallery(*arguments)


def test_learning_rate_is_plotted_for_every_step_of_a_short_run(tmp_path):
    figure = visualization.plot_learning_rate(lambda step: 0.1 * (5 - step), 5, path=tmp_path / "rate.png")
    steps, rates = figure.axes[0].lines[0].get_data()
    np.testing.assert_array_equal(steps, range(5))
    np.testing.assert_allclose(rates, [0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-12)  # the same arithmetic in float64
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")


def test_curves_show_the_logged_values(tmp_path):
    lines = [
        {"step": 10, "loss": 2.0, "mean_iou": None},
        {"step": 20, "loss": None, "mean_iou": 0.2},
        {"step": 20, "eval": {"loss": 1.5, "mean_iou": 0.1, "per_class_iou": {}}},
        {"step": 30, "loss": 1.0, "mean_iou": 0.3},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss, iou = visualization.plot_curves(path, path=tmp_path / "curves.png").axes
    drawn = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in (loss, iou)]
    assert drawn[0] == {"training": [[10, 2.0], [30, 1.0]], "evaluation": [[20, 1.5]]}
    assert drawn[1] == {"training": [[20, 0.2], [30, 0.3]], "evaluation": [[20, 0.1]]}


def test_reports_that_an_evaluation_cut_short_are_joined(tmp_path):
    values = {10: 2.0, 20: 1.0, 25: 0.4, 30: 0.8, 40: 0.5, 42: 0.1}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": value}) + "\n" for step, value in values.items()))
    (line,) = visualization.plot_curves(path).axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[10, 2.0], [20, 1.0], [30, 0.6], [42, 5.2 / 12]], rtol=1e-12)


def test_a_run_of_one_short_report_is_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "loss": 2.0}\n')
    (line,) = visualization.plot_curves(path).axes[0].lines
    assert line.get_xydata().tolist() == [[4, 2.0]]


def test_curves_need_a_metrics_file(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl does not exist"):
        visualization.plot_curves(tmp_path / "metrics.jsonl")


def test_notebooks_display_figures_without_pyplot():
    script = (
        "import sys, numpy as np\n"
        "from deeplab_jax import visualization\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure = visualization.plot_segmentation_mask_gallery(np.zeros((1, 8, 8, 3), np.uint8))\n"
        "assert figure._repr_png_().startswith(b'\\x89PNG')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_ipython_displays_figures_as_png():
    formatters = pytest.importorskip("IPython.core.formatters", reason="needs IPython (extra dev)")
    figure = visualization.new_figure(2, 1)
    figure.add_subplot().plot([0, 1])
    shown, _ = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")


def test_label_sets_with_many_classes_are_drawn():
    label_set = LabelSet.from_names([f"class {i}" for i in range(150)])
    masks = np.arange(160, dtype=np.uint8).reshape(1, 10, 16) % 150
    figure = visualization.plot_segmentation_mask_gallery(
        np.zeros((1, 10, 16, 3), np.uint8), masks, label_set=label_set
    )
    assert len(texts(figure)) == 2 + 150


def test_a_gallery_of_real_images(shared, tmp_path):
    root = shared / "data" / "voc_subset"
    names = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))[:3]
    images = [np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg")) for name in names]
    masks = [np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png")) for name in names]
    figure = visualization.plot_segmentation_mask_gallery(images, masks, path=tmp_path / "gallery.png")
    assert texts(figure)[-1] == "unlabeled"  # every VOC mask has borders
