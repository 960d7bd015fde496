"""The stream of unlabeled images: its two views, its order, and folders of images without masks."""

import contextlib
import itertools

import numpy as np
import pytest

from deeplab_jax import data
from deeplab_jax.config import base_config
from deeplab_jax.data.check import check
from deeplab_jax.data.pixel_format import PixelFormat
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.transforms import random_cut_box, random_grayscale
from deeplab_jax.data.unlabeled import add_unlabeled, unlabeled_batches
from deeplab_jax.errors import UserError
from tests.conftest import make_folder, scene, write_jpeg
from tests.data.test_pipeline import NumberedSource, assert_equal

OFF = {"photometric_distortion": False, "grayscale": 0.0, "blur": 0.0, "cut_mix": 0.0}


def config(data_fields=None, **fields):
    made = base_config()
    made.data.update({"batch_size": 4, "image_size": (48, 40), "resize": "scale_crop"} | (data_fields or {}))
    made.unlabeled.update(split="train", **fields)
    return made


def scenes():
    return data.open_source("synthetic", "train", num_examples=10, image_size=(48, 40))


def take(source, count, made, **options):
    with contextlib.closing(unlabeled_batches(source, made, **options)) as batches:
        return list(itertools.islice(batches, count))


def test_without_strong_transforms_the_views_are_equal():
    for batch in take(scenes(), 3, config(**OFF)):
        np.testing.assert_array_equal(batch["unlabeled_weak"], batch["unlabeled_strong"])
        assert not batch["unlabeled_box"].any()


def test_the_strong_view_changes_colors_and_moves_nothing():
    """Distortion and grayscale change pixels one by one: equal colors stay equal."""
    batches = take(scenes(), 4, config(blur=0.0))
    weak, strong = (np.concatenate([batch[f"unlabeled_{view}"] for batch in batches]) for view in ("weak", "strong"))
    assert sum((one != other).any() for one, other in zip(weak, strong, strict=True)) > 8
    for one, other in zip(weak, strong, strict=True):
        _, first, inverse = np.unique(one.reshape(-1, 3), axis=0, return_index=True, return_inverse=True)
        colors = other.reshape(-1, 3).astype(int)
        # OpenCV rounds hues differently at the ends of rows, where it does not use vector instructions.
        assert np.abs(colors - colors[first[inverse.ravel()]]).max() <= 8


def test_the_weak_view_has_no_color_transform_and_no_rule_that_looks_at_labels():
    plain = take(scenes(), 2, config())
    colored = {"color_jitter": 0.5, "photometric_distortion": True, "random_blur": 3.0, "cat_max_ratio": 0.3}
    assert_equal(plain, take(scenes(), 2, config(colored)))


def test_batches_have_the_shapes_and_dtypes_of_the_step():
    (batch,) = take(scenes(), 1, config(batch_size=6))
    found = {name: (array.shape, array.dtype.name) for name, array in batch.items() if array.dtype.kind != "U"}
    assert found == {
        "unlabeled_weak": ((6, 48, 40, 3), "uint8"),
        "unlabeled_strong": ((6, 48, 40, 3), "uint8"),
        "unlabeled_exists": ((6, 48, 40), "bool"),
        "unlabeled_label": ((6, 48, 40), "uint8"),
        "unlabeled_box": ((6, 4), "int32"),
    }
    assert batch["unlabeled_id"].shape == batch["unlabeled_unreadable"].shape == (6,)


def test_padding_does_not_exist_and_missing_labels_do():
    """Column 0 of each example has the ignore label; padding fills 8x8 pixels up to 10x12."""
    source = NumberedSource(sizes=((8, 8),))
    fields = {"image_size": (10, 12), "scale_range": (1.0, 1.0), "random_flip": "none"}
    (batch,) = take(source, 1, config(fields, **OFF), pad_color=(200, 200, 200))
    exists, labels, images = (batch[f"unlabeled_{name}"] for name in ("exists", "label", "weak"))
    assert exists.sum() == 4 * 64
    for i in range(4):
        assert (images[i][~exists[i]] == 200).all()
        assert (labels[i][~exists[i]] == 255).all()
        number = int(batch["unlabeled_id"][i].removeprefix("number_"))
        assert (images[i][exists[i]] == number).all()
        assert sorted(labels[i][exists[i]].tolist()) == [number % 6] * 56 + [255] * 8


@pytest.mark.parametrize("cut_mix", [0.0, 0.5])
def test_the_stream_depends_on_the_position_alone(cut_mix):
    made = config(cut_mix=cut_mix)
    straight = take(scenes(), 5, made)
    assert_equal(straight[2:], take(scenes(), 3, made, batches_seen=2))
    parts = [take(scenes(), 5, made, process_index=i, process_count=2) for i in range(2)]
    for k, batch in enumerate(straight):
        both = np.concatenate([part[k]["unlabeled_weak"] for part in parts])
        # Pairs, or with no CutMix single images, go to the processes in turn.
        group = 2 if cut_mix else 1
        order = np.arange(4).reshape(-1, 2, group).swapaxes(0, 1).ravel()
        np.testing.assert_array_equal(both, batch["unlabeled_weak"][order])
    other = made.copy_and_resolve_references()
    other.train.seed = 1
    assert not np.array_equal(take(scenes(), 1, other)[0]["unlabeled_weak"], straight[0]["unlabeled_weak"])


def test_each_pass_has_each_image_once():
    fields = {"image_size": (6, 8), "resize": "squeeze"}
    made = config(fields, batch_size=2)
    ids = [name for batch in take(NumberedSource(), 10, made) for name in batch["unlabeled_id"].tolist()]
    assert sorted(ids[:10]) == sorted(ids[10:]) == sorted(f"number_{i}" for i in range(10))


def test_both_streams_are_joined_and_closed():
    closed = []

    def stream(name, **arrays):
        with contextlib.closing(contextlib.ExitStack()) as stack:
            stack.callback(closed.append, name)
            while True:
                yield {key: np.array(value) for key, value in arrays.items()}

    labeled = stream("labeled", image=[1], unreadable=["", "a"])
    unlabeled = stream("unlabeled", unlabeled_weak=[2], unlabeled_unreadable=["b"])
    batches = add_unlabeled(labeled, unlabeled)
    for _ in range(2):
        batch = next(batches)
        assert {name: array.tolist() for name, array in batch.items()} == {
            "image": [1], "unlabeled_weak": [2], "unreadable": ["", "a", "b"],
        }  # fmt: skip
    batches.close()
    assert sorted(closed) == ["labeled", "unlabeled"]


def test_boxes_have_the_sizes_and_the_share_of_the_paper():
    rng = np.random.default_rng(0)
    boxes = np.array([random_cut_box((100, 100), rng, share=0.5) for _ in range(2000)])
    drawn = boxes[boxes.any(axis=1)]
    assert len(drawn) / 2000 == pytest.approx(0.5, abs=0.05)  # 4.5 standard deviations
    assert (drawn >= 0).all()
    assert (drawn[:, 2:] <= 100).all()
    heights, widths = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    areas = heights * widths / 100**2
    assert areas.min() > 0.015  # rounded down from 0.02
    assert areas.max() <= 0.4
    assert 0.28 < (heights / widths).min() < 0.35
    assert 2.9 < (heights / widths).max() < 3.6
    # Places up to all borders are drawn.
    assert drawn[:, :2].min(axis=0).tolist() == [0, 0]
    assert drawn[:, 2:].max(axis=0).tolist() == [100, 100]
    assert not random_cut_box((100, 100), rng, share=0.0).any()
    top, left, bottom, right = random_cut_box((1, 3), rng, share=1.0)
    assert (top, bottom) == (0, 1)
    assert 0 <= left < right <= 3


def test_gray_images_have_equal_channels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    gray = random_grayscale(image, rng, share=1.0)
    expected = image.astype(float) @ (0.299, 0.587, 0.114)
    assert np.abs(gray - expected[..., None]).max() <= 1  # rounding
    assert (gray == gray[..., :1]).all()
    np.testing.assert_array_equal(random_grayscale(image, rng, share=0.0), image)
    shares = [not np.array_equal(random_grayscale(image, rng, share=0.2), image) for _ in range(1000)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.06)


def test_colors_of_other_images_are_not_distorted():
    made = config()
    data.check_augmentation(made, PixelFormat(3), "photos")
    with pytest.raises(
        UserError, match=r"^unlabeled.photometric_distortion=True changes .* fields has .*distortion=False"
    ):
        data.check_augmentation(made, PixelFormat(5, "uint16"), "fields")
    made.unlabeled.photometric_distortion = False
    with pytest.raises(UserError, match=r"^unlabeled.grayscale=0.2 changes"):
        data.check_augmentation(made, PixelFormat(5, "uint16"), "fields")
    made.unlabeled.split = None
    data.check_augmentation(made, PixelFormat(5, "uint16"), "fields")


# Folders


@pytest.fixture
def photos(tmp_path):
    """Six labeled images, and two without masks, of which one is named like a labeled one."""
    root = make_folder(tmp_path / "photos")
    for seed, name in enumerate(("field_000", "more/other")):
        write_jpeg(root / "unlabeled" / f"{name}.jpg", scene(200 + seed)[0])
    return root


def test_a_folder_of_unlabeled_images_is_a_split(photos, tmp_path, caplog):
    prepare("folder", source=photos, data_dir=tmp_path / "data")
    source = data.open_source("folder", "unlabeled", data_dir=tmp_path / "data")
    assert source.ids() == ["unlabeled/field_000", "unlabeled/more/other"]
    example = data.decode_example(source[0])
    assert example["label"].shape == example["image"].shape[:2]
    assert (example["label"] == 255).all()
    assert "unlabeled" not in caplog.text  # no warning
    for options in ({"source": photos}, {"data_dir": tmp_path / "data"}):
        report = check("folder", **options)
        assert report.ok
        assert report.splits["unlabeled"].num_examples == 2
    made = config(batch_size=2)
    made.data.update(name="folder", data_dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="^every pixel of folder/unlabeled is ignored"):
        data.open_split(made, "unlabeled")
    (batch,) = take(data.open_split(made, "unlabeled", needs_labels=False), 1, made)
    assert (batch["unlabeled_label"] == 255).all()
    assert batch["unlabeled_exists"].any()


def test_unlabeled_images_are_cut_into_tiles(photos, tmp_path):
    prepare("folder", source=photos, data_dir=tmp_path / "data", tile_size=(40, 40))
    source = data.open_source("folder", "unlabeled", data_dir=tmp_path / "data")
    shapes = [data.decode_example(source[i])["label"].shape for i in range(len(source))]
    assert len(shapes) > 2
    assert max(max(shape) for shape in shapes) <= 40


def test_a_list_of_unlabeled_images_needs_no_masks(tmp_path):
    root = make_folder(tmp_path / "photos")
    (root / "masks" / "field_005.png").unlink()
    for split, numbers in {"train": (0, 1), "val": (2, 3), "unlabeled": (4, 5)}.items():
        (root / f"{split}.txt").write_text("".join(f"field_{i:03d}\n" for i in numbers))
    prepare("folder", source=root, data_dir=tmp_path / "data")
    source = data.open_source("folder", "unlabeled", data_dir=tmp_path / "data")
    labels = [data.decode_example(source[i])["label"] for i in range(2)]
    assert [(label != 255).any() for label in labels] == [True, False]
    write_jpeg(root / "unlabeled" / "x.jpg", scene(1)[0])
    with pytest.raises(UserError, match=r"photos has a folder unlabeled/ and lists or images of a split unlabeled"):
        prepare("folder", source=root, data_dir=tmp_path / "other")


def test_unlabeled_images_that_are_scored_on_are_a_leak(tmp_path):
    root = make_folder(tmp_path / "photos")
    for split, numbers in {"train": (0, 1), "val": (2, 3), "unlabeled": (3, 4)}.items():
        (root / f"{split}.txt").write_text("".join(f"field_{i:03d}\n" for i in numbers))
    assert check("folder", source=root).leaks == ["folder/unlabeled and folder/val share 1 image: field_003"]


def test_an_empty_folder_of_unlabeled_images_is_named(tmp_path):
    root = make_folder(tmp_path / "photos")
    (root / "unlabeled").mkdir()
    with pytest.raises(UserError, match=r"unlabeled contains no images .*; remove it$"):
        prepare("folder", source=root, data_dir=tmp_path / "data")
