"""Exporting masks as annotations: imported again, they differ by at most a pixel at the outlines."""

import json
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.annotation_export import export_annotations
from deeplab_jax.data.annotation_import import import_annotations
from deeplab_jax.data.formats.run_lengths import encode_runs
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, VOC
from tests.conftest import write_index_png, write_jpeg
from tests.data.formats.exports import photo, write

FORMATS = ("coco", "cvat", "labelme")
SIZE = (90, 120)
CLASSES = "background\nleaf\nstem\nbud\n"


def scene(seed: int) -> np.ndarray:
    """Touching classes with curved outlines, a hole with an island, single pixels, thin lines, an ignored region."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, SIZE[0] // 15, SIZE[1] // 15)).astype(np.float32)
    label = np.stack([cv2.resize(layer, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for layer in coarse]).argmax(0)
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    radius = np.hypot(yy - 45, xx - 60)
    label[radius < 30], label[radius < 18], label[radius < 6] = 1, 0, 2
    for _ in range(12):
        label[rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])] = rng.integers(0, 4)
    label[10, 5:60], label[20:70, 100] = 3, 2
    label[75:85, 90:110] = IGNORE_LABEL
    return label.astype(np.uint8)


def near_outline(label: np.ndarray) -> np.ndarray:
    """The pixels that have another class, or the edge of the image, among their eight neighbors."""
    padded = np.pad(label, 1, constant_values=254)
    kernel = np.ones((3, 3), np.uint8)
    return (cv2.dilate(padded, kernel) != cv2.erode(padded, kernel))[1:-1, 1:-1]


def save(folder, labels, suffix="_mask.png"):
    """Images in `photos/`, and their masks as `predict` writes them, beside overlays."""
    for name, label in labels.items():
        photo(folder / "photos" / f"{name}.jpg", label.shape)
        write_index_png(folder / "masks" / f"{name}{suffix}", label)
        photo(folder / "masks" / f"{name}_overlay.png", label.shape)
    write(folder / "classes.txt", CLASSES)


def round_trip(folder, name, tolerance) -> dict[str, np.ndarray]:
    arguments = (folder / "photos", folder / "masks", folder / f"to_{name}")
    export_annotations(name, *arguments, classes=folder / "classes.txt", tolerance=tolerance)
    report = import_annotations(name, folder / f"to_{name}", folder / f"from_{name}", image_folder=folder / "photos")
    assert not report.skipped
    masks = folder / f"from_{name}" / "masks"
    ids = [report.label_set.class_names.index(class_name) for class_name in CLASSES.split()]
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[ids] = range(4)  # LabelMe sorts the classes
    return {path.stem: table[np.asarray(Image.open(path))] for path in masks.rglob("*.png")}


@pytest.mark.parametrize("name", FORMATS)
def test_without_tolerance_masks_come_back_exactly(name, tmp_path):
    labels = {f"p{seed}": scene(seed) for seed in range(3)}
    save(tmp_path, labels)
    found = round_trip(tmp_path, name, 0)
    assert {key: (found[key] == label).all() for key, label in labels.items()} == dict.fromkeys(labels, True)


@pytest.mark.parametrize("name", FORMATS)
def test_simplified_masks_come_back_within_a_pixel_of_the_outline(name, tmp_path):
    labels = {f"p{seed}": scene(seed) for seed in range(3)}
    save(tmp_path, labels)
    found = round_trip(tmp_path, name, 1.0)
    for key, label in labels.items():
        differs = found[key] != label
        assert not (differs & ~near_outline(label)).any()
        # Outlines are long in so small an image: a third of all pixels are beside one.
        assert differs.mean() < 0.04


def test_simplified_polygons_have_few_corners(tmp_path):
    save(tmp_path, {"p": scene(0)})
    counts = {}
    for tolerance in (0, 1.0):
        output = tmp_path / f"out{tolerance}"
        export_annotations(
            "coco",
            tmp_path / "photos",
            tmp_path / "masks",
            output,
            classes=tmp_path / "classes.txt",
            tolerance=tolerance,
        )
        shapes = json.loads((output / "instances.json").read_text())["annotations"]
        counts[tolerance] = sum(len(shape["segmentation"][0]) for shape in shapes)
    assert counts[1.0] < counts[0] / 2


def test_files_have_the_fields_of_their_tools(tmp_path):
    save(tmp_path, {"p": scene(0)})
    for name in FORMATS:
        round_trip(tmp_path, name, 1.0)
    coco = json.loads((tmp_path / "to_coco" / "instances.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "p.jpg", "height": 90, "width": 120}]
    assert [(item["id"], item["name"]) for item in coco["categories"]] == [
        (1, "leaf"),
        (2, "stem"),
        (3, "bud"),
        (255, "__ignore__"),
    ]
    shape = next(shape for shape in coco["annotations"] if shape["category_id"] == IGNORE_LABEL)
    assert (shape["bbox"], shape["area"], shape["iscrowd"]) == ([90.0, 75.0, 20.0, 10.0], 200.0, 0)
    root = ET.parse(tmp_path / "to_cvat" / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iter("label")] == ["leaf", "stem", "bud", "__ignore__"]
    assert root.find("image").attrib == {"id": "0", "name": "p.jpg", "width": "120", "height": "90"}
    labelme = json.loads((tmp_path / "to_labelme" / "p.json").read_text())
    assert labelme["imagePath"] == "p.jpg"
    assert {shape["shape_type"] for shape in labelme["shapes"]} == {"polygon"}
    assert (tmp_path / "to_labelme" / "p.jpg").read_bytes() == (tmp_path / "photos" / "p.jpg").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_rotated_images_and_subfolders(name, tmp_path):
    label = scene(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    write_jpeg(tmp_path / "photos" / "x" / "p.jpg", np.zeros((SIZE[1], SIZE[0], 3), np.uint8), exif=exif)
    write_index_png(tmp_path / "masks" / "x" / "p_mask.png", label)
    write(tmp_path / "classes.txt", CLASSES)
    found = round_trip(tmp_path, name, 0)
    assert (found["p"] == label).all()
    assert (tmp_path / f"from_{name}" / "masks" / "x" / "p.png").is_file()


def test_a_first_class_that_is_not_the_background_is_exported(tmp_path):
    photo(tmp_path / "photos" / "p.jpg", (4, 6))
    write_index_png(tmp_path / "masks" / "p.png", np.zeros((4, 6), np.uint8))
    write(tmp_path / "classes.txt", "ground\ncrop\n")
    arguments = (tmp_path / "photos", tmp_path / "masks", tmp_path / "out")
    export_annotations("coco", *arguments, classes=tmp_path / "classes.txt")
    report = import_annotations("coco", tmp_path / "out", tmp_path / "data", image_folder=tmp_path / "photos")
    assert report.label_set.class_names == ("background", "ground", "crop")
    assert report.pixels == {1: 24}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "photos" / "p.jpg").rename(root / "photos" / "q.jpg"), "no image in .* has a mask in"),
        (lambda root: photo(root / "photos" / "p.jpeg"), "p.jpg and p.jpeg differ only in their suffix"),
        (lambda root: photo(root / "photos" / "p.jpg", (9, 9)), "p.jpg is 9x9 .* mask .*p_mask.png is 90x120"),
        (lambda root: write(root / "classes.txt", "background\nleaf\n"), "contains label [23]; labels must be below 2"),
        (lambda root: (root / "classes.txt").unlink(), "classes.txt does not exist"),
        (lambda root: write(root / "out" / "mine.txt", "mine"), "out exists; choose another --output"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, change, message):
    save(tmp_path, {"p": scene(0)})
    change(tmp_path)
    before = sorted(tmp_path.rglob("*.*"))
    with pytest.raises(UserError, match=message):
        export_annotations(
            "cvat", tmp_path / "photos", tmp_path / "masks", tmp_path / "out", classes=tmp_path / "classes.txt"
        )
    assert sorted(tmp_path.rglob("*.*")) == before


def test_formats_without_a_writer(tmp_path):
    with pytest.raises(UserError, match="annotations are not exported to 'yolo'; choose from coco, cvat, labelme"):
        export_annotations("yolo", tmp_path, tmp_path, tmp_path / "out", classes=tmp_path)


# ---- Real masks ----


def write_voc_as_coco(root, names, folder) -> dict[str, np.ndarray]:
    """VOC masks as COCO instances: half of the classes as polygons, the others as run lengths, 255 as a crowd."""
    from deeplab_jax.data.formats.outlines import find_polygons

    images, shapes, labels = [], [], {}
    for image_id, name in enumerate(names, 1):
        label = labels[name] = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        size = {"height": label.shape[0], "width": label.shape[1]}
        images.append({"id": image_id, "file_name": f"{name}.jpg"} | size)
        for class_id in np.setdiff1d(label, [0]).tolist():
            mask = label == class_id
            shape = {"id": len(shapes) + 1, "image_id": image_id, "category_id": 91 - min(class_id, 20), "iscrowd": 0}
            if class_id == IGNORE_LABEL:
                shape |= {"iscrowd": 1}
            if class_id % 2 and class_id != IGNORE_LABEL:
                segmentation = [polygon.ravel().tolist() for polygon in find_polygons(mask, tolerance=0)]
            else:
                segmentation = {"size": list(label.shape), "counts": encode_runs(np.ascontiguousarray(mask.T))}
            shapes.append(shape | {"segmentation": segmentation})
    categories = [{"id": 91 - index, "name": name} for index, name in enumerate(VOC.class_names) if index]
    write(folder / "instances.json", {"images": images, "annotations": shapes, "categories": categories})
    return labels


@pytest.mark.parametrize("count", [10, pytest.param(None, marks=pytest.mark.slow)])
def test_real_masks_as_coco_annotations_come_back_exactly(shared, tmp_path, count):
    root = shared / "data" / "coco_voc"
    if not root.is_dir():
        pytest.skip(f"needs real data: no folder {root}")
    names = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))[:count]
    labels = write_voc_as_coco(root, names, tmp_path)
    source, output = tmp_path / "instances.json", tmp_path / "data"
    report = import_annotations("coco", source, output, image_folder=root / "JPEGImages", keep_empty=True)
    assert report.images == len(names)
    assert report.label_set.class_names == VOC.class_names
    for name, label in labels.items():
        assert (np.asarray(Image.open(output / "masks" / f"{name}.png")) == label).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_real_masks_come_back_within_a_pixel_of_the_outline(shared, tmp_path, name):
    root = shared / "data" / "coco_voc"
    if not root.is_dir():
        pytest.skip(f"needs real data: no folder {root}")
    write(tmp_path / "classes.txt", "\n".join(VOC.class_names))
    arguments = (root / "JPEGImages", root / "SegmentationClass", tmp_path / "out")
    export_annotations(name, *arguments, classes=tmp_path / "classes.txt")
    options = {"image_folder": root / "JPEGImages", "classes": tmp_path / "classes.txt", "keep_empty": True}
    report = import_annotations(name, tmp_path / "out", tmp_path / "data", **options)
    differing = pixels = 0
    for path in (root / "SegmentationClass").glob("*.png"):
        label = np.asarray(Image.open(path))
        differs = np.asarray(Image.open(tmp_path / "data" / "masks" / path.name)) != label
        assert not (differs & ~near_outline(label)).any(), path.name
        differing, pixels = differing + np.count_nonzero(differs), pixels + label.size
    print(f"{name}: {report.images} images, {report.shapes} shapes, {differing / pixels:.4%} of the pixels differ")
    assert differing / pixels < 0.01
