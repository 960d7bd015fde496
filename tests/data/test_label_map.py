"""Label maps: tables of ids and colors, their inverse, and folders whose masks have ids of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.check import check, report_tables
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.masks import UnknownLabels
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from tests.conftest import scene, write_jpeg

CLASSES = LabelSet(("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))
MAP = LabelMap.create(CLASSES, ids=[(7, 8), 300, 23], ignore_ids=[0, 1], ignore_colors=[(0, 0, 0)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_ids_are_mapped_by_table(dtype):
    values = np.array([[7, 8, 23], [0, 1, 255]], dtype)
    before = values.copy()
    label = MAP.apply(values, "a.png")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, [[0, 0, 2], [255, 255, 255]])
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("unknown", [2, 254, 301, 65535, -1])
def test_an_id_that_no_rule_names_is_an_error(unknown):
    with pytest.raises(
        UnknownLabels, match=rf"mask a.png contains id {unknown}, which the label map does not"
    ) as caught:
        MAP.apply(np.array([[7, unknown, unknown]]), "a.png")
    assert caught.value.counts == {unknown: 2}


def test_reduce_zero_label():
    found = LabelMap.create(CLASSES, reduce_zero_label=True)
    np.testing.assert_array_equal(found.apply(np.array([[0, 1, 2, 3, 255]], np.uint8), "a"), [[255, 0, 1, 2, 255]])
    with pytest.raises(UnknownLabels, match="id 4"):
        found.apply(np.array([[4]], np.uint8), "a")


def test_255_can_be_a_class():
    found = LabelMap.create(LabelSet.from_names(("background", "polyp")), ids=[0, 255])
    np.testing.assert_array_equal(found.apply(np.array([[0, 255]], np.uint8), "a"), [[0, 1]])
    np.testing.assert_array_equal(found.to_source(np.array([[0, 1]], np.uint8)), [[0, 255]])


@pytest.mark.parametrize("kind", ["gray", "16 bits", "palette", "RGB"])
def test_files_of_every_kind(tmp_path, kind):
    values = np.array([[7, 23], [0, 8]], np.uint8)
    expected = [[0, 2], [255, 0]]
    if kind == "RGB":
        table = np.zeros((256, 3), np.uint8)
        table[[7, 8, 23]] = [CLASSES.palette[0], CLASSES.palette[0], CLASSES.palette[2]]
        image = Image.fromarray(table[values])
    elif kind == "16 bits":
        image = Image.fromarray(np.where(values == 8, np.uint16(300), values.astype(np.uint16)))
        expected = [[0, 2], [255, 1]]
    else:
        image = Image.fromarray(values)
        if kind == "palette":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    label = MAP.read(tmp_path / "a.png")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 65535).filter(lambda value: value != 255), min_size=1, max_size=255, unique=True))
def test_the_inverse_of_the_inverse(sources):
    labels = LabelSet.from_names(tuple(f"class {i}" for i in range(len(sources))))
    found = LabelMap.create(labels, ids=sources)
    label = np.array([[*range(len(sources)), 255]], np.uint8)
    source = found.to_source(label)
    assert source.dtype == (np.uint8 if max(sources) < 256 else np.uint16)
    np.testing.assert_array_equal(source, [[*sources, 255]])
    np.testing.assert_array_equal(found.apply(source, "a"), label)
    again = LabelMap.from_json(found.to_json(), len(sources))
    np.testing.assert_array_equal(again.to_source(label), source)


def test_submissions_have_the_first_id_of_a_class_and_the_ignored_id_of_the_data_set():
    np.testing.assert_array_equal(MAP.to_source(np.array([[0, 1, 2, 255]], np.uint8)), [[7, 300, 23, 0]])
    with pytest.raises(ValueError, match="label 3 has no source id"):
        MAP.to_source(np.array([[3]], np.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ids": [1, 1, 2]}, "source id 1 belongs to two classes, road and car"),
        ({"ids": [1, 2]}, "2 entries for 3 classes"),
        ({"ids": [1, 2, 65536]}, "source id 65536 .* not from 0 to 65535"),
        ({"ids": [1, 2, 3], "reduce_zero_label": True}, "leave it out"),
        ({"ignore_colors": [(0, 0, 256)]}, "is not three integers"),
    ],
)
def test_wrong_maps_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        LabelMap.create(CLASSES, **values)


# Folders


def make(root, masks, **files):
    for i, mask in enumerate(masks):
        write_jpeg(root / "images" / f"p{i}.jpg", scene(i, 16, 16)[0][:8, :8])
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"p{i}.png")
    for name, content in files.items():
        (root / name.replace("_", ".")).write_text(content)
    return root


def read(root, tmp_path, **options):
    """The labels of a folder in the order of its images, and its train split."""
    prepare("folder", source=root, data_dir=tmp_path / "data", **options)
    found = {}
    for split in ("train", "val"):
        source = data.open_source("folder", split, data_dir=tmp_path / "data")
        labels = [label for _, label in data.decode_examples(source, range(len(source)))]
        found |= dict(zip(source.ids(), labels, strict=True))
    return [found[name] for name in sorted(found)], source


ADE = np.array([[0, 1], [2, 3]], np.uint8).repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("way", ["option", "labels.toml", "classes.txt"])
def test_zero_is_unlabeled(tmp_path, way):
    names, options = "wall\nsky\ntree\n", {}
    files = {"classes_txt": names}
    if way == "option":
        options = {"reduce_zero_label": True}
    elif way == "labels.toml":
        files["labels_toml"] = "reduce_zero_label = true\n"
    else:
        files = {"classes_txt": "0: __ignore__\n1: wall\n2: sky\n3: tree\n"}
    root = make(tmp_path / "own", [ADE, ADE.T], **files)
    labels, source = read(root, tmp_path, **options)
    np.testing.assert_array_equal(labels, [np.array([255, 0, 1, 2], np.uint8)[mask] for mask in (ADE, ADE.T)])
    np.testing.assert_array_equal([source.label_map.to_source(label) for label in labels], [ADE, ADE.T])
    assert check("folder", source=root, **options).ok


def test_masks_from_one_without_a_rule_name_the_option(tmp_path):
    root = make(tmp_path / "own", [ADE, ADE], classes_txt="wall\nsky\ntree\n")
    with pytest.raises(UserError, match="pass --reduce-zero-label if 0 marks unlabeled pixels"):
        read(root, tmp_path)


def test_16_bit_masks_with_large_ids(tmp_path):
    ids = np.array([0, 1000, 40000, 65535], np.uint16)
    toml = 'ignore_ids = [65535]\nclasses = [{name = "a", id = 0}, {name = "b", ids = [1000, 40000]}]\n'
    root = make(tmp_path / "own", [ids[ADE], ids[ADE.T]], labels_toml=toml)
    labels, _ = read(root, tmp_path)
    np.testing.assert_array_equal(labels, [np.array([0, 1, 1, 255], np.uint8)[mask] for mask in (ADE, ADE.T)])


def test_gray_rgb_masks_of_ids(tmp_path):
    toml = 'ignore_ids = [0]\nclasses = [{name = "a", ids = [1, 2]}, {name = "b", id = 3}]\n'
    root = make(tmp_path / "own", [np.dstack([ADE] * 3), ADE], labels_toml=toml)
    labels, _ = read(root, tmp_path)
    np.testing.assert_array_equal(labels, [np.array([255, 0, 0, 1], np.uint8)[ADE]] * 2)


def test_several_colors_of_a_class(tmp_path):
    colors = np.array([[0, 0, 0], [250, 0, 0], [200, 0, 0], [0, 0, 250]], np.uint8)
    toml = (
        'ignore_colors = [[0, 0, 0]]\nclasses = [{name = "a", colors = ["#fa0000", "#c80000"]}, '
        '{name = "b", color = "#0000fa"}]\n'
    )
    root = make(tmp_path / "own", [colors[ADE], colors[ADE.T]], labels_toml=toml)
    labels, source = read(root, tmp_path)
    np.testing.assert_array_equal(labels, [np.array([255, 0, 0, 1], np.uint8)[mask] for mask in (ADE, ADE.T)])
    assert source.label_set.palette == ((250, 0, 0), (0, 0, 250))


def test_check_counts_the_ids_that_no_rule_names(tmp_path):
    toml = 'ignore_ids = [0]\nclasses = [{name = "a", id = 1}]\n'
    root = make(tmp_path / "own", [ADE, ADE, np.zeros_like(ADE), np.ones_like(ADE)], labels_toml=toml)
    report = check("folder", source=root, ignore_ids=[0])
    assert not report.ok
    counts = {}
    for split in report.splits.values():
        for value, (pixels, images) in split.unknown.items():
            before = counts.get(value, (0, 0))
            counts[value] = (before[0] + pixels, before[1] + images)
    assert counts == {"2": (32, 2), "3": (32, 2)}
    assert any("without a class" in str(table.title) for table in report_tables(report))
    with pytest.raises(UserError, match=r"mask .*p\d\.png contains id 2, which the label map does not name"):
        prepare("folder", source=root, data_dir=tmp_path / "data")
    assert check("folder", source=root, ignore_ids=[2, 3]).ok


def test_label_maps_are_options_of_folders_alone(tmp_path):
    with pytest.raises(UserError, match="--reduce-zero-label is an option of folder, not of camvid"):
        prepare("camvid", source=tmp_path, data_dir=tmp_path / "data", reduce_zero_label=True)
