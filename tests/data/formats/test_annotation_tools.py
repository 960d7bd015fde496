"""What each annotation tool writes is read as the mask that a person sees in the tool."""

import base64
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.annotation_formats import ANNOTATION_FORMATS, recognize_format
from deeplab_jax.data.annotation_import import import_annotations
from deeplab_jax.data.check import check
from deeplab_jax.data.formats.run_lengths import encode_runs
from deeplab_jax.data.sources.folder import read_raw
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL
from tests.data.formats.exports import (
    EXPECTED,
    EXPORTS,
    LEAF,
    LEAF_BOX,
    LEAF_PIXELS,
    SIZE,
    STEM,
    STEM_BOX,
    STEM_PIXELS,
    box,
    coco_mask,
    format_of,
    make_coco,
    make_cvat_xml,
    make_label_studio,
    make_labelme,
    make_roboflow,
    make_supervisely,
    make_yolo,
    photo,
    png,
    write,
)


def read_masks(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The masks as the data set `folder` reads them."""
    raw = read_raw(folder)
    return {example.id: example.read_label() for split in raw.splits.values() for example in split}


def add_second(root: pathlib.Path, make) -> None:
    """The same export with a second image, because `folder` needs two."""
    make(root / "x")


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_becomes_masks(name, tmp_path):
    EXPORTS[name](tmp_path / "export")
    report = import_annotations(format_of(name), tmp_path / "export", tmp_path / "data")
    assert (report.images, report.skipped, report.empty) == (1, [], [])
    assert report.label_set.class_names == ("background", "leaf", "stem")
    (mask,) = (tmp_path / "data" / "masks").rglob("*.png")
    assert (np.asarray(Image.open(mask)) == EXPECTED).all()
    (image,) = (tmp_path / "data" / "images").rglob("*.jpg")
    assert image.read_bytes() == next((tmp_path / "export").rglob("a.jpg")).read_bytes()
    assert mask.relative_to(tmp_path / "data" / "masks").with_suffix("") == image.relative_to(
        tmp_path / "data" / "images"
    ).with_suffix("")


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_recognized(name, tmp_path):
    EXPORTS[name](tmp_path / "export")
    assert recognize_format(tmp_path / "export").name == format_of(name)


@pytest.mark.parametrize("name", EXPORTS)
def test_a_zip_archive_and_names_that_are_not_ascii(name, tmp_path):
    import shutil
    import unicodedata

    image = "Bl\u00e4tter \u8349 1.jpg"
    EXPORTS[name](tmp_path / "export", image)
    # macOS stores the accents of file names as characters of their own.
    for path in list((tmp_path / "export").rglob("*.jpg")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "export")
    report = import_annotations(format_of(name), pathlib.Path(archive), tmp_path / "data")
    assert report.images == 1
    (mask,) = (tmp_path / "data" / "masks").rglob("*.png")
    assert (np.asarray(Image.open(mask)) == EXPECTED).all()
    assert unicodedata.normalize("NFC", mask.stem) == pathlib.PurePath(image).stem


@pytest.mark.parametrize("name", ["cvat_masks", "roboflow"])
def test_exported_masks_are_a_data_set_as_they_are(name, tmp_path):
    EXPORTS[name](tmp_path / "export")
    if name == "cvat_masks":
        photo(tmp_path / "export" / "JPEGImages" / "b.jpg")
        mask = tmp_path / "export" / "SegmentationClass" / "a.png"
        (mask.parent / "b.png").write_bytes(mask.read_bytes())
    masks = read_masks(tmp_path / "export")
    assert all((mask == EXPECTED).all() for mask in masks.values())
    with pytest.raises(UserError, match="export with its own classes, so --reduce-zero-label and --ignore-ids do not"):
        read_raw(tmp_path / "export", ignore_ids=[1])
    report = check("folder", source=tmp_path / "export")
    assert report.ok
    assert report.label_set.class_names == ("background", "leaf", "stem")
    assert any("is read as an export of" in note for note in report.notes)


def test_the_imported_folder_is_a_data_set(tmp_path):
    make_coco(tmp_path / "export")
    values = json.loads((tmp_path / "export" / "annotations" / "instances_default.json").read_text())
    photo(tmp_path / "export" / "images" / "b.jpg")
    values["images"].append({"id": 8, "file_name": "b.jpg"})
    values["annotations"].append(
        {"id": 3, "image_id": 8, "category_id": 3, "iscrowd": 1, "segmentation": [sum(LEAF_BOX, [])]}
    )
    write(tmp_path / "export" / "annotations" / "instances_default.json", values)
    import_annotations("coco", tmp_path / "export", tmp_path / "data")
    masks = read_masks(tmp_path / "data")
    assert (masks["a"] == EXPECTED).all()
    assert (masks["b"] == np.where(EXPECTED > 0, IGNORE_LABEL, 0)).all()


# ---- What the formats have of their own ----


def runs(mask):
    return {"size": list(SIZE), "counts": encode_runs(np.ascontiguousarray(mask.T))}


def test_coco_draws_smaller_annotations_on_top_of_larger_ones_and_of_crowds(tmp_path):
    large, crowd = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    large[2:18, 2:18] = True
    crowd[:, 10:] = True
    label, _ = coco_mask(
        tmp_path,
        [
            {"category_id": 2, "segmentation": runs(STEM)},
            {"category_id": 1, "segmentation": runs(large), "iscrowd": 0},
            {"category_id": 1, "segmentation": runs(crowd), "iscrowd": 1},
        ],
    )
    expected = np.where(crowd, IGNORE_LABEL, 0)
    expected[large] = 1
    expected[STEM] = 2
    assert (label == expected).all()


def test_a_degenerate_polygon_does_not_hide_the_others_of_its_annotation(tmp_path):
    label, report = coco_mask(tmp_path, [{"category_id": 1, "segmentation": [[1, 1, 5, 5], sum(LEAF_BOX, [])]}])
    assert (label == (LEAF | STEM)).all()
    (skipped,) = report.skipped
    assert "annotation 0, polygon 0: it has 2 points" in skipped


@pytest.mark.parametrize(
    "data",
    [
        {"text": "a leaf", "photo": "/data/local-files/?d=photos%2Fa.jpg"},
        {"image": "https://example.org/a.jpg?token=1.png"},
        {"image": "s3://bucket/deep/a.jpg"},
        {"image": "/data/upload/3/0a1b2c3d-a.jpg"},
        {"image": "a%2Ejpg", "other": "a.jpg"},
    ],
)
def test_label_studio_names_images_in_many_ways(tmp_path, data):
    make_label_studio(tmp_path / "export")
    path = tmp_path / "export" / "project-1.json"
    tasks = json.loads(path.read_text())
    tasks[0]["data"] = data
    write(path, tasks)
    import_annotations("label-studio", tmp_path / "export", tmp_path / "data")
    assert (tmp_path / "data" / "masks" / "a.png").is_file()


def test_cvat_images_of_several_subsets(tmp_path):
    make_cvat_xml(tmp_path / "export")
    for subset in ("train", "val"):
        photo(tmp_path / "export" / "images" / subset / "a.jpg")
    (tmp_path / "export" / "images" / "a.jpg").unlink()
    path = tmp_path / "export" / "annotations.xml"
    path.write_text(path.read_text().replace('name="a.jpg"', 'name="a.jpg" subset="val"'))
    import_annotations("cvat", tmp_path / "export", tmp_path / "data")
    assert (tmp_path / "data" / "masks" / "val" / "a.png").is_file()


def test_coco_counts_what_covers_no_area(tmp_path):
    _, report = coco_mask(
        tmp_path,
        [
            {"category_id": 1, "segmentation": [sum(LEAF_BOX, [])]},
            {"category_id": 1, "segmentation": [[1, 1, 5, 5]]},
            {"category_id": 1, "segmentation": [[1, 1, 5]]},
            {"category_id": 1, "segmentation": [[1, 1, 5, 5, 1, 1]]},
            {"category_id": 1, "segmentation": [[50, 50, 60, 50, 60, 60]]},
            {"category_id": 1, "segmentation": []},
            {"category_id": 1, "bbox": [1, 2, 3, 4]},
            {"category_id": 1, "segmentation": runs(LEAF) | {"size": [30, 20]}},
        ],
    )
    assert report.shapes == 1
    assert len(report.skipped) == 7
    assert report.skipped[0] == f"{tmp_path / 'instances.json'}, annotation 1: it has 2 points; at least 3 are needed"
    assert "it covers no pixel" in report.skipped[2]
    assert "is not that of the image, [20, 30]" in report.skipped[-1]


def test_names_of_the_background_and_of_ignored_pixels(tmp_path):
    label, report = coco_mask(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [sum(LEAF_BOX, [])]},
            {"category_id": 1, "segmentation": [sum(STEM_BOX, [])]},
            {"category_id": 2, "segmentation": [sum(box(20, 15, 28, 18), [])]},
        ],
        names=("_background_", "__ignore__", "leaf"),
    )
    expected = np.where(EXPECTED == 1, 1, 0)
    expected[15:18, 20:28] = IGNORE_LABEL
    assert (label == expected).all()
    assert report.label_set.class_names == ("background", "leaf")


def test_a_class_list_sets_the_ids(tmp_path):
    listed = write(tmp_path / "classes.txt", "stem\nleaf\nbud\n")
    label, report = coco_mask(tmp_path, [{"category_id": 1, "segmentation": [sum(LEAF_BOX, [])]}], classes=listed)
    assert report.label_set.class_names == ("background", "stem", "leaf", "bud")
    assert label.max() == 2


def test_several_coco_files_are_splits(tmp_path):
    for split in ("train", "val"):
        make_coco(tmp_path / "export", f"{split}_a.jpg")
        listed = tmp_path / "export" / "annotations"
        (listed / "instances_default.json").rename(listed / f"instances_{split}2017.json")
    write(tmp_path / "export" / "annotations" / "captions_train2017.json", {"annotations": []})
    import_annotations("coco", tmp_path / "export", tmp_path / "data")
    raw = read_raw(tmp_path / "data")
    assert {split: [example.id for example in found] for split, found in raw.splits.items()} == {
        "train": ["train_a"],
        "val": ["val_a"],
    }


def test_labelme_shapes_and_an_embedded_image(tmp_path):
    photo(tmp_path / "photo.jpg")
    mask = base64.b64encode(png(np.eye(3, dtype=bool))).decode()
    shapes = [
        {"label": "leaf", "points": LEAF_PIXELS},
        {"label": "_background_", "points": STEM_PIXELS, "shape_type": "polygon"},
        {"label": "__ignore__", "points": [[20, 15], [22, 17]], "shape_type": "rectangle"},
        {"label": "bud", "points": [[25, 5], [25, 7]], "shape_type": "circle"},
        {"label": "bud", "points": [[0, 0], [2, 2]], "shape_type": "mask", "mask": mask},
        {"label": "leaf", "points": [[0, 0], [9, 9]], "shape_type": "line"},
        {"label": "leaf", "points": [[0, 0]], "shape_type": "point"},
    ]
    values = {
        "shapes": shapes,
        "imagePath": "..\\elsewhere\\field.jpg",
        "imageData": base64.b64encode((tmp_path / "photo.jpg").read_bytes()).decode(),
    }
    write(tmp_path / "export" / "field.json", values)
    report = import_annotations("labelme", tmp_path / "export", tmp_path / "data")
    assert report.label_set.class_names == ("background", "bud", "leaf")
    assert [text.rpartition(": ")[2] for text in report.skipped] == [
        "a shape of type 'line' covers no area",
        "a shape of type 'point' covers no area",
    ]
    label = np.asarray(Image.open(tmp_path / "data" / "masks" / "field.png"))
    assert (label[4:12, 5:15] == np.where(STEM[4:12, 5:15], 0, 2)).all()
    assert (label[15:18, 20:23] == IGNORE_LABEL).all()
    assert (label[:3, :3] == np.eye(3)).all()
    assert (label[5, 23:28] == 1).all()
    assert (tmp_path / "data" / "images" / "field.jpg").read_bytes() == (tmp_path / "photo.jpg").read_bytes()


def test_labelme_labels_txt_sets_the_order(tmp_path):
    make_labelme(tmp_path / "export")
    write(tmp_path / "export" / "labels.txt", "__ignore__\n_background_\nstem\nleaf\n")
    report = import_annotations("labelme", tmp_path / "export", tmp_path / "data")
    assert report.label_set.class_names == ("background", "stem", "leaf")


def test_cvat_masks_boxes_and_ellipses(tmp_path):
    make_cvat_xml(tmp_path / "export")
    path = tmp_path / "export" / "annotations.xml"
    counts = ", ".join(map(str, encode_runs(np.eye(3, 5, dtype=bool))))
    shapes = (
        '<box label="leaf" xtl="20" ytl="2" xbr="24" ybr="4" rotation="90"/>'
        f'<mask label="stem" rle="{counts}" left="25" top="10" width="5" height="3"/>'
        '<ellipse label="leaf" cx="22" cy="16" rx="3" ry="2"/><points label="leaf" points="1,2"/>'
        '<box label="leaf" xtl="20" ytl="2" xbr="x" ybr="4"/>'
    )
    path.write_text(path.read_text().replace("</image>", f"{shapes}</image>"))
    report = import_annotations("cvat", tmp_path / "export", tmp_path / "data")
    label = np.asarray(Image.open(tmp_path / "data" / "masks" / "a.png"))
    expected = EXPECTED.copy()
    expected[1:5, 21:23] = 1
    expected[10:13, 25:30] = np.eye(3, 5) * 2
    assert (label[:14] == expected[:14]).all()
    assert label[16, 19:26].tolist() == [1] * 7
    assert label[14:19, 22].tolist() == [1] * 5
    assert [text.rpartition(": ")[2] for text in report.skipped] == [
        "a points covers no area",
        "it lacks one of the numbers xtl, ytl, xbr, ybr, rotation",
    ]


def test_label_studio_brushes_and_their_png_export(tmp_path):
    make_label_studio(tmp_path / "export")
    opacity = np.where(LEAF | STEM, 255, 0).astype(np.uint8)
    Image.fromarray(opacity).save(tmp_path / "export" / "task-3-annotation-9-by-1-tag-leaf-0.png")
    report = import_annotations("label-studio", tmp_path / "export", tmp_path / "data")
    # The regions of the JSON that are not strokes stay.
    assert report.shapes == 3
    assert (np.asarray(Image.open(tmp_path / "data" / "masks" / "a.png")) == EXPECTED).all()


def test_yolo_boxes_are_skipped_and_smaller_polygons_are_on_top(tmp_path):
    make_yolo(tmp_path / "export")
    path = tmp_path / "export" / "train" / "labels" / "a.txt"
    path.write_text(path.read_text() + "\n0 0.5 0.5 0.1 0.1\n0 0.1 0.1 x 0.2 0.3 0.4\n\n")
    photo(tmp_path / "export" / "valid" / "images" / "b.jpg")
    report = import_annotations("yolo", tmp_path / "export", tmp_path / "data")
    assert [text.rpartition(": ")[2] for text in report.skipped] == [
        "it is a box, which has no outline",
        "its coordinates are not numbers",
    ]
    assert report.notes == ("1 images have no labels file and are left out",)


def test_supervisely_holes(tmp_path):
    make_supervisely(tmp_path / "export")
    path = tmp_path / "export" / "ds" / "ann" / "a.jpg.json"
    values = json.loads(path.read_text())
    values["objects"][0]["points"]["interior"] = [STEM_PIXELS]
    values["objects"].pop()
    write(path, values)
    import_annotations("supervisely", tmp_path / "export", tmp_path / "data")
    label = np.asarray(Image.open(tmp_path / "data" / "masks" / "ds" / "a.png"))
    assert (label == LEAF).all()


def test_every_format_has_an_export_here():
    assert {format_of(name) for name in EXPORTS} == set(ANNOTATION_FORMATS)


def test_value_0_of_roboflow_is_the_background_whatever_its_name(tmp_path):
    make_roboflow(tmp_path / "export")
    path = tmp_path / "export" / "train" / "_classes.csv"
    path.write_text(path.read_text().replace("background", "unlabeled"))
    report = import_annotations("roboflow", tmp_path / "export", tmp_path / "data")
    assert report.label_set.class_names == ("background", "leaf", "stem")
    assert (np.asarray(Image.open(tmp_path / "data" / "masks" / "train" / "a.png")) == EXPECTED).all()
