"""Importing annotations: images that are rotated, mistakes in one line, files of strangers."""

import json
import os
import pathlib
import re
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import budget, data
from deeplab_jax.data.annotation_import import describe_import, import_annotations
from deeplab_jax.data.formats.canvas import place
from deeplab_jax.errors import UserError
from tests.data.formats.exports import (
    EXPORTS,
    LEAF_BOX,
    SIZE,
    coco_mask,
    format_of,
    make_coco,
    make_cvat_masks,
    make_cvat_xml,
    make_label_studio,
    make_labelme,
    make_roboflow,
    make_supervisely,
    make_yolo,
    photo,
    write,
)

LEAF = [sum(LEAF_BOX, [])]


def coco_values(**changes):
    values = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 2, "segmentation": LEAF}],
        "categories": [{"id": 2, "name": "leaf"}],
    }
    return values | changes


@pytest.fixture
def fails(tmp_path):
    """Imports and checks the one line of the error, and that nothing is written."""

    def check(name, message, source=None, **options):
        with pytest.raises(UserError, match=message) as caught:
            import_annotations(name, source or tmp_path / "export", tmp_path / "data", **options)
        assert "\n" not in str(caught.value)
        assert [path for path in tmp_path.iterdir() if path.name.startswith("data")] == []

    return check


# ---- EXIF ----


def rotated(path: pathlib.Path, stored: np.ndarray, orientation: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("frame", ["upright", "stored"])
def test_the_stated_size_tells_whether_annotations_are_upright(tmp_path, orientation, frame):
    # The image is white where the annotation is, in the frame of its coordinates.
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[4:12, 5:15] = 255
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    methods = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    methods |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE}
    methods[8] = Image.Transpose.ROTATE_90
    image = Image.fromarray(upright)
    stored = np.asarray(image if undo == 1 else image.transpose(methods[undo]))
    rotated(tmp_path / "photos" / "a.png", stored, orientation)
    assert (data.read_image(tmp_path / "photos" / "a.png") == upright).all()
    annotated = upright if frame == "upright" or orientation < 5 else stored
    rows, columns = np.nonzero(annotated[..., 0])
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    polygon = [int(value) for value in (left, top, right, top, right, bottom, left, bottom)]
    size = {"height": annotated.shape[0], "width": annotated.shape[1]}
    values = coco_values(
        images=[{"id": 1, "file_name": "a.png"} | size],
        annotations=[{"id": 5, "image_id": 1, "category_id": 2, "segmentation": [polygon]}],
    )
    source = write(tmp_path / "instances.json", values)
    import_annotations("coco", source, tmp_path / "data", image_folder=tmp_path / "photos")
    label = data.read_mask(tmp_path / "data" / "masks" / "a.png", data_label_set())
    assert (label == (upright[..., 0] > 0)).all()


def data_label_set():
    from deeplab_jax.labels import LabelSet

    return LabelSet.from_names(("background", "leaf"))


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"id": 5, "image_id": 4, "category_id": 2}]},
            "annotation 5 has image 4, which",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 7}]},
            r"instances\.json, annotation 5 has category 7, which the file does not list",
        ),
        ({"annotations": [{"id": 5}]}, "annotation 5 has image None"),
        ({"annotations": "none"}, "`annotations` is not a list of objects"),
        ({"annotations": []}, "none of the 1 images has an annotation"),
        ({"categories": []}, "annotation 5 has category 2|has no classes"),
        ({"categories": [{"id": 2, "name": "leaf"}, {"id": 2, "name": "stem"}]}, "two categories have id 2"),
        ({"categories": [{"id": 2}]}, "category 2 has no name"),
        ({"categories": [{"id": 2, "name": "# leaf"}]}, "class name '# leaf' cannot be a line of classes.txt"),
        ({"categories": [{"id": 2, "name": "a:1,2,3:x"}]}, "class name 'a:1,2,3:x' cannot be a line"),
        (
            {"categories": [{"id": i, "name": f"c{i}"} for i in range(300)]},
            "has 300 classes; at most 254",
        ),
        ({"images": [{"id": 1, "file_name": "b.jpg"}]}, "image 1 names image 'b.jpg', which is not in .*photos"),
        ({"images": [{"id": 1}]}, "image 1 does not name its image"),
        ({"images": [{"id": 1, "file_name": ["a.jpg"]}]}, "image 1 does not name its image"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}] * 2}, "two images have id 1"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "x/a.jpg"}]},
            "image 2 and .*image 1 are of images with the same name",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]},
            r"image 1 is annotated at 40x60 \(height x width\), but image a\.jpg is 20x30",
        ),
    ],
)
def test_mistakes_in_coco_name_the_file_and_the_entry(tmp_path, fails, changes, message):
    photo(tmp_path / "photos" / "a.jpg")
    source = write(tmp_path / "instances.json", coco_values(**changes))
    fails("coco", message, source, image_folder=tmp_path / "photos")


def change(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "file", "old", "new", "message"),
    [
        (make_labelme, "a.json", '"a.jpg"', '"b.jpg"', "a.json names image 'b.jpg', which is not in"),
        (make_labelme, "a.json", '"leaf"', "null", "a.json, shape 0 has class None, which .* does not list"),
        (make_labelme, "a.json", ": 20", ": 21", "is annotated at 21x30"),
        (make_cvat_xml, "annotations.xml", 'label="leaf"', 'label="leef"', "has class 'leef', .*did you mean leaf"),
        (make_cvat_xml, "annotations.xml", 'z_order="1"', 'z_order="x"', "z_order 'x', not an integer"),
        (make_cvat_xml, "annotations.xml", "<meta>", "<met>", "not valid XML"),
        (
            make_cvat_xml,
            "annotations.xml",
            "<meta>",
            "<track/><meta>",
            "has tracks of a video; .* images 1.1",
        ),
        (make_cvat_masks, "labelmap.txt", "stem:64,80,96::\n", "", "color .*not assigned|which is not assigned"),
        (make_label_studio, "project-1.json", '"annotations"', '"tag"', "export the project as JSON, not as JSON-MIN"),
        (make_label_studio, "project-1.json", "a.jpg", "b.jpg", "task 0 names image 'b.jpg'|names image"),
        (
            make_label_studio,
            "project-1.json",
            '"image_rotation": 0',
            '"image_rotation": 90',
            "rotated .* 90 degrees",
        ),
        (make_label_studio, "project-1.json", '["leaf"]', '["leaf", "stem"]', "exactly one is needed"),
        (make_yolo, "train/labels/a.txt", "1 ", "5 ", r"a\.txt, line 1 has class '5', which data\.yaml does not list"),
        (make_yolo, "data.yaml", "names", "nmes", "has no list `names`"),
        (make_yolo, "data.yaml", "names: [", "names: [[[", "has no list `names`"),
        (
            make_roboflow,
            "train/_classes.csv",
            "2, stem",
            "3, stem",
            "contains value 2, which _classes.csv",
        ),
        (make_roboflow, "train/_classes.csv", "2, stem", "stem", r"_classes\.csv, line 4 is not a value"),
        (make_supervisely, "ds/ann/a.jpg.json", "leaf", "leef", "object 0 has class 'leef'"),
        (make_supervisely, "ds/ann/a.jpg.json", '"data": "', '"data": "?', "object 1: its bitmap is damaged"),
        (make_supervisely, "ds/ann/a.jpg.json", '"data": "', '"data": "AAAA', "object 1: its bitmap is damaged"),
    ],
)
def test_mistakes_in_other_formats_do_too(tmp_path, fails, make, file, old, new, message):
    make(tmp_path / "export")
    change(tmp_path / "export" / file, old, new)
    name = next(format_of(key) for key, other in EXPORTS.items() if other is make)
    fails(name, message)


@pytest.mark.parametrize("name", sorted({format_of(name) for name in EXPORTS}))
def test_folders_without_an_export(tmp_path, fails, name):
    (tmp_path / "export").mkdir()
    fails(name, "export.* (has no|is missing|it is not a CVAT export)")
    fails(name, "nowhere does not exist", tmp_path / "nowhere")


@pytest.mark.parametrize("name", EXPORTS)
def test_images_somewhere_else(tmp_path, fails, name):
    EXPORTS[name](tmp_path / "export")
    (photo_path,) = (tmp_path / "export").rglob("a.jpg")
    if name == "roboflow":  # the masks are beside the images
        return
    target = tmp_path / "photos" / photo_path.relative_to(tmp_path / "export")
    target.parent.mkdir(parents=True)
    photo_path.rename(target)
    fails(format_of(name), "--images")
    import_annotations(format_of(name), tmp_path / "export", tmp_path / "data", image_folder=tmp_path / "photos")
    assert len(list((tmp_path / "data" / "masks").rglob("a.png"))) == 1


def test_an_existing_output_is_left_alone(tmp_path):
    make_coco(tmp_path / "export")
    write(tmp_path / "data" / "mine.txt", "mine")
    with pytest.raises(UserError, match="data exists; choose another --output"):
        import_annotations("coco", tmp_path / "export", tmp_path / "data")
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"


def test_images_of_the_same_name_in_several_folders(tmp_path, fails):
    for folder in ("x", "y"):
        photo(tmp_path / "photos" / folder / "a.jpg")
    source = write(tmp_path / "instances.json", coco_values())
    fails("coco", r"names image 'a\.jpg', but .*photos has several: x/a\.jpg, y/a\.jpg", source,
          image_folder=tmp_path / "photos")  # fmt: skip
    values = coco_values(images=[{"id": 1, "file_name": "C:\\data\\y\\a.jpg"}])
    import_annotations("coco", write(source, values), tmp_path / "data", image_folder=tmp_path / "photos")
    assert (tmp_path / "data" / "masks" / "y" / "a.png").is_file()


def test_images_without_annotations(tmp_path):
    photo(tmp_path / "photos" / "b.jpg")
    (tmp_path / "one").mkdir()
    values = coco_values()
    values["images"].append({"id": 2, "file_name": "b.jpg"})
    photo(tmp_path / "photos" / "a.jpg")
    source = write(tmp_path / "instances.json", values)
    report = import_annotations("coco", source, tmp_path / "data", image_folder=tmp_path / "photos")
    assert report.images == 1
    assert describe_import(report) == [
        "1 images without annotations are left out (b.jpg); --keep-empty imports them as background"
    ]
    options = {"image_folder": tmp_path / "photos", "keep_empty": True}
    assert import_annotations("coco", source, tmp_path / "all", **options).images == 2
    assert not np.asarray(Image.open(tmp_path / "all" / "masks" / "b.png")).any()


def test_notes_count_what_is_skipped(tmp_path):
    _, report = coco_mask(
        tmp_path, [{"category_id": 1, "segmentation": LEAF}, *[{"category_id": 1, "segmentation": []}] * 5]
    )
    skipped, unused = describe_import(report)
    assert skipped.startswith("5 shapes are skipped: ")
    assert skipped.count("it has no segmentation") == 3
    assert skipped.endswith("; ...")
    assert unused == "no pixel has class stem"


# ---- Files of strangers ----


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/secret.jpg", "..\\secret.jpg", "file:///secret.jpg", "images/../../secret.jpg"]
)
def test_a_path_does_not_lead_out_of_the_export(tmp_path, fails, name):
    photo(tmp_path / "secret.jpg")
    make_coco(tmp_path / "export")
    listed = tmp_path / "export" / "annotations" / "instances_default.json"
    values = json.loads(listed.read_text())
    values["images"][0]["file_name"] = name
    write(listed, values)
    fails("coco", "which is not in")


@pytest.mark.parametrize("name", EXPORTS)
def test_links_do_not_lead_out_of_the_export(tmp_path, fails, name):
    EXPORTS[name](tmp_path / "export")
    (image,) = (tmp_path / "export").rglob("a.jpg")
    image.rename(tmp_path / "secret.jpg")
    image.symlink_to(tmp_path / "secret.jpg")
    fails(format_of(name), r"a\.jpg is a link that leads out of .*export")


def test_links_of_annotations_do_not_either(tmp_path, fails):
    make_labelme(tmp_path / "export")
    os.rename(tmp_path / "export" / "a.json", tmp_path / "secret.json")
    (tmp_path / "export" / "a.json").symlink_to(tmp_path / "secret.json")
    fails("labelme", r"a\.json is a link that leads out of")


def test_archives_write_nothing_outside(tmp_path, fails):
    make_coco(tmp_path / "export")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in (tmp_path / "export").rglob("*"):
            if path.suffix == ".json":
                archive.write(path, path.relative_to(tmp_path / "export"))
            elif path.suffix == ".jpg":
                archive.write(path, "../images/a.jpg")
    fails("coco", r"export\.zip.*names image 'a\.jpg', which is not in", tmp_path / "export.zip")


ENTITIES = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotations><image name="&b;" width="3" height="3"/></annotations>"""
EXTERNAL = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotations><image name="&a;" width="3" height="3"/></annotations>"""


@pytest.mark.parametrize("content", [ENTITIES, EXTERNAL])
def test_entities_in_xml_are_refused(tmp_path, fails, content):
    fails("cvat", "declares a document type", write(tmp_path / "export" / "annotations.xml", content))


def test_deep_and_large_files_are_refused(tmp_path, fails, monkeypatch):
    make_cvat_xml(tmp_path / "export")
    path = tmp_path / "export" / "annotations.xml"
    change(path, "<meta>", "<x>" * 10_000)
    fails("cvat", "nested more than 64 levels")
    monkeypatch.setattr(budget, "ANNOTATION_BYTES", 1000)
    fails("cvat", "at most 1000 are read")
    source = write(tmp_path / "instances.json", {"images": [{"file_name": "a" * 2000}]})
    fails("coco", "is larger than", source, image_folder=tmp_path)


def test_a_small_file_does_not_cost_the_memory_of_a_large_image(tmp_path, fails):
    photo(tmp_path / "photos" / "a.jpg")
    huge = {"size": [100_000, 100_000], "counts": [10**10]}
    values = coco_values(images=[{"id": 1, "file_name": "a.jpg", "height": 100_000, "width": 100_000}])
    values["annotations"][0]["segmentation"] = huge
    source = write(tmp_path / "instances.json", values)
    fails("coco", "is annotated at 100000x100000", source, image_folder=tmp_path / "photos")


def test_a_png_in_a_shape_is_not_larger_than_the_image(tmp_path, fails):
    make_supervisely(tmp_path / "export")
    import base64
    import zlib

    encoded = cv2.imencode(".png", np.zeros((500, 500), np.uint8))[1].tobytes()
    path = tmp_path / "export" / "ds" / "ann" / "a.jpg.json"
    text = base64.b64encode(zlib.compress(encoded)).decode()
    path.write_text(re.sub(r'"data": "[^"]*"', f'"data": "{text}"', path.read_text()))
    fails("supervisely", r"of .*a\.jpg\.json, object 1 has 500 x 500 pixels, more than 0\.0006 million")


def test_a_mask_is_cut_off_at_the_edges():
    mask = np.ones((3, 4), bool)
    assert np.argwhere(place(mask, (-2, -1), (5, 6))).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert np.count_nonzero(place(mask, (4, 3), (5, 6))) == 4
    assert not place(mask, (6, 0), (5, 6)).any()
    assert not place(mask, (-4, 0), (5, 6)).any()
