"""The same drawing as each annotation tool exports it."""

import base64
import io
import json
import pathlib
import zlib

import numpy as np
from PIL import Image

from deeplab_jax.data.annotation_import import import_annotations
from tests.conftest import write_jpeg

SIZE = (20, 30)

# A leaf of 8x10 pixels with a stem of 4x4 on top of it, and a bud in another corner.
EXPECTED = np.zeros(SIZE, np.uint8)
EXPECTED[4:12, 5:15] = 1
EXPECTED[8:12, 9:13] = 2
LEAF, STEM = EXPECTED == 1, EXPECTED == 2


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


LEAF_BOX, STEM_BOX = box(5, 4, 15, 12), box(9, 8, 13, 12)
# Tools that paint the outline: the pixels in the corners.
LEAF_PIXELS, STEM_PIXELS = box(5, 4, 14, 11), box(9, 8, 12, 11)


def photo(path: pathlib.Path, size=SIZE, **options) -> None:
    write_jpeg(path, np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8), **options)


def write(path: pathlib.Path, values) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def png(mask: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(mask).save(encoded, "PNG")
    return encoded.getvalue()


def make_coco(root, name="a.jpg"):
    photo(root / "images" / name)
    flat = [sum(points, []) for points in (LEAF_BOX, STEM_BOX)]
    values = {
        "images": [{"id": 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "segmentation": [flat[1]], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "segmentation": [flat[0]], "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "leaf"}, {"id": 9, "name": "stem"}],
    }
    write(root / "annotations" / "instances_default.json", values)


def make_labelme(root, name="a.jpg"):
    photo(root / name)
    shapes = [
        {"label": "leaf", "points": LEAF_PIXELS, "shape_type": "polygon"},
        {"label": "stem", "points": [STEM_PIXELS[0], STEM_PIXELS[2]], "shape_type": "rectangle"},
    ]
    values = {"shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    write((root / name).with_suffix(".json"), values)


def make_cvat_xml(root, name="a.jpg"):
    photo(root / "images" / name)
    points = [";".join(f"{x:.2f},{y:.2f}" for x, y in shape) for shape in (LEAF_BOX, STEM_BOX)]
    labels = "".join(f"<label><name>{label}</name><color>{color}</color></label>" for label, color in COLORS.items())
    write(
        root / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>{labels}'
        f'</labels></task></meta><image id="0" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">'
        f'<polygon label="stem" points="{points[1]}" z_order="1"/>'
        f'<polygon label="leaf" points="{points[0]}" z_order="0"/>'
        "</image></annotations>",
    )


COLORS = {"leaf": "#102030", "stem": "#405060"}


def make_cvat_masks(root, name="a.jpg"):
    photo(root / "JPEGImages" / name)
    palette = np.array([(0, 0, 0), (16, 32, 48), (64, 80, 96)], np.uint8)
    path = (root / "SegmentationClass" / name).with_suffix(".png")
    path.parent.mkdir(parents=True)
    Image.fromarray(palette[EXPECTED]).save(path)
    write(root / "ImageSets" / "Segmentation" / "default.txt", pathlib.PurePath(name).stem + "\n")
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:16,32,48::\nstem:64,80,96::\n"
    write(root / "labelmap.txt", lines)


def make_label_studio(root, name="a.jpg"):
    photo(root / "images" / name)
    percent = (np.array(LEAF_BOX) / SIZE[::-1] * 100).tolist()
    x, y = np.array(STEM_BOX[0]) / SIZE[::-1] * 100
    width, height = 4 / SIZE[1] * 100, 4 / SIZE[0] * 100
    sizes = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0}
    regions = [
        {"type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["leaf"]}} | sizes,
        {
            "type": "rectanglelabels",
            "value": {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": ["stem"]},
        }
        | sizes,
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    annotations = [{"was_cancelled": True, "result": []}, {"result": regions}]
    tasks = [{"id": 3, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"}, "annotations": annotations}]
    write(root / "project-1.json", tasks)


def make_yolo(root, name="a.jpg"):
    photo(root / "train" / "images" / name)
    # In the middle of the pixels, because fractions are rounded toward zero.
    points = [((np.array(shape) + 0.5) / SIZE[::-1]).ravel() for shape in (STEM_PIXELS, LEAF_PIXELS)]
    lines = [
        f"{index} {' '.join(f'{value:.6f}' for value in shape)}" for index, shape in zip((1, 0), points, strict=True)
    ]
    write((root / "train" / "labels" / name).with_suffix(".txt"), "\n".join(lines))
    write(root / "data.yaml", "train: ../train/images\nnc: 2\nnames: ['leaf', 'stem']\n")


def make_roboflow(root, name="a.jpg"):
    photo(root / "train" / name)
    Image.fromarray(EXPECTED).save(root / "train" / f"{pathlib.PurePath(name).stem}_mask.png")
    write(root / "train" / "_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n2, stem\n")


def make_supervisely(root, name="a.jpg"):
    photo(root / "ds" / "img" / name)
    bitmap = base64.b64encode(zlib.compress(png(np.ones((4, 4), bool)))).decode()
    objects = [
        {"classTitle": "leaf", "geometryType": "polygon", "points": {"exterior": LEAF_PIXELS, "interior": []}},
        {"classTitle": "stem", "geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [9, 8]}},
    ]
    values = {"size": {"height": SIZE[0], "width": SIZE[1]}, "objects": objects}
    write(root / "ds" / "ann" / f"{name}.json", values)
    write(root / "meta.json", {"classes": [{"title": title, "color": color} for title, color in COLORS.items()]})


EXPORTS = {
    "coco": make_coco, "labelme": make_labelme, "cvat": make_cvat_xml, "cvat_masks": make_cvat_masks,
    "label-studio": make_label_studio, "yolo": make_yolo, "roboflow": make_roboflow, "supervisely": make_supervisely,
}  # fmt: skip


def format_of(name: str) -> str:
    return name.removesuffix("_masks")


def coco_mask(tmp_path, annotations, names=("leaf", "stem"), **options):
    photo(tmp_path / "photos" / "a.jpg")
    values = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 1, "id": i} | annotation for i, annotation in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }
    path = write(tmp_path / "instances.json", values)
    report = import_annotations("coco", path, tmp_path / "data", image_folder=tmp_path / "photos", **options)
    return np.asarray(Image.open(tmp_path / "data" / "masks" / "a.png")), report
