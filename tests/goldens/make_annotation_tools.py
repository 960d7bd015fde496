"""Draws shapes with the libraries of annotation tools.

Run from the checkout, with the packages installed, without their dependencies (made with pycocotools 2.0.11, labelme
6.3.1, label-studio-sdk 2.1.2, supervisely 6.74.51, ultralytics 8.4.190, numpy 2.4.6, pillow 13.0.0, opencv 5.0.0):

    PYTHONPATH=. python tests/goldens/make_annotation_tools.py

writes tests/goldens/annotation_tools.npz: the shapes as JSON, and the mask of each, packed into bits. Of labelme, the
SDKs and ultralytics, only the functions that draw are run: the packages need Qt, a server or PyTorch.
"""

import __future__

import ast
import base64
import importlib.util
import io
import json
import math
import pathlib
import uuid
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as mask_utils

GOLDENS = pathlib.Path(__file__).parent
SIZE = (37, 53)
COUNT = 24  # of each kind


def load(package: str, path: str, *names: str) -> dict:
    """The functions and constants of these names in a file of a package, without what it imports."""
    root = pathlib.Path(importlib.util.find_spec(package).submodule_search_locations[0])
    source = (root / path).read_text()
    found = {
        "np": np, "cv2": cv2, "PIL": PIL, "Image": PIL.Image, "math": math, "uuid": uuid, "io": io, "zlib": zlib,
        "base64": base64, "groupby": None,
    }  # fmt: skip
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            node.decorator_list = []
            module = ast.Module([node], [])
            exec(compile(module, path, "exec", __future__.annotations.compiler_flag), found)
    return found


def random_polygon(rng: np.random.Generator, kind: int) -> np.ndarray:
    points = rng.uniform(-6, 60, (rng.integers(3, 9), 2))
    return [points, points.round(), (points * 2).round() / 2, points.round(2)][kind % 4]


def random_mask(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    coarse = rng.random((size[0] // 5 + 2, size[1] // 5 + 2)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) > rng.uniform(0.3, 0.7)


def coco(rng):
    for i in range(COUNT):
        polygons = [random_polygon(rng, i).ravel().tolist() for _ in range(1 + i % 2)]
        drawn = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *SIZE)))
        yield polygons, drawn
    for i in range(COUNT):
        mask = random_mask(rng)
        encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        if i % 2:
            flat = mask.ravel(order="F").astype(int)
            changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
            counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
            assert (mask_utils.decode(mask_utils.frPyObjects({"size": SIZE, "counts": counts}, *SIZE)) == mask).all()
        else:
            counts = encoded["counts"].decode()
        yield {"size": list(SIZE), "counts": counts}, mask


def labelme(rng):
    functions = load("labelme", "utils/shape.py", "shape_to_mask", "shapes_to_label")
    for i in range(COUNT):
        kind = ("polygon", "polygon", "rectangle", "circle", "oriented_rectangle")[i % 5]
        points = random_polygon(rng, i)
        points = {"polygon": points, "oriented_rectangle": np.resize(points, (4, 2))}.get(kind, points[:2])
        shape = {"label": "leaf", "shape_type": kind, "points": points.tolist()}
        yield shape, functions["shape_to_mask"](SIZE, shape["points"], kind)
    for i in range(COUNT // 4):
        mask = random_mask(rng, (12 + i, 17))
        points = [[5.7, 3.2], [5.7 + mask.shape[1] - 1, 3.2 + mask.shape[0] - 1]]
        encoded = io.BytesIO()
        PIL.Image.fromarray(mask).save(encoded, "PNG")
        shape = {"label": "leaf", "shape_type": "mask", "points": points, "mask": mask}
        drawn, _ = functions["shapes_to_label"](SIZE, [shape], {"leaf": 1})
        yield shape | {"mask": base64.b64encode(encoded.getvalue()).decode()}, drawn


def label_studio(rng):
    functions = load(
        "label_studio_sdk", "converter/brush.py", "InputStream", "access_bit", "bytes2bit", "decode_rle", "bits2byte",
        "base_rle_encode", "encode_rle",
    )  # fmt: skip
    for i in range(COUNT):
        opacity = (random_mask(rng) * 255).astype(np.uint8)
        if i % 2:  # soft edges: values that do not repeat
            opacity = cv2.GaussianBlur(opacity, (5, 5), 0)
        rgba = np.dstack([np.full(SIZE, 10 * i, np.uint8)] * 3 + [opacity])
        values = functions["encode_rle"](rgba.ravel())
        decoded = functions["decode_rle"](values).reshape(*SIZE, 4)[..., 3]
        yield {"type": "brushlabels", "value": {"format": "rle", "rle": values, "brushlabels": ["leaf"]}}, decoded > 128


def yolo(rng):
    functions = load("ultralytics", "data/utils.py", "polygon2mask")
    for i in range(COUNT):
        text = [f"{value:.6f}" for value in (random_polygon(rng, i).clip(0, 53) / SIZE[::-1]).clip(0, 1).ravel()]
        points = np.array(text, np.float32).reshape(-1, 2) * np.array(SIZE[::-1], np.float32)
        yield text, functions["polygon2mask"](SIZE, [points.ravel()])


def supervisely(rng):
    polygon = load("supervisely", "geometry/polygon.py", "_draw_impl")
    bitmap = load("supervisely", "geometry/bitmap.py", "data_2_base64", "base64_2_data")
    for i in range(COUNT):
        exterior, hole = random_polygon(rng, 1), random_polygon(rng, 1) / 2 + 10
        points = {"exterior": exterior.astype(int).tolist(), "interior": [hole.astype(int).tolist()] if i % 2 else []}

        class Drawn:
            exterior_np = exterior.astype(np.int32)[:, ::-1]
            interior_np = [np.array(ring, np.int32)[:, ::-1] for ring in points["interior"]]

        canvas = np.zeros(SIZE, np.uint8)
        polygon["_draw_impl"](Drawn, canvas, 1)
        yield {"geometryType": "polygon", "points": points}, canvas
    for _ in range(COUNT // 2):
        mask = random_mask(rng, (14, 19))
        text = bitmap["data_2_base64"](mask)
        canvas = np.zeros(SIZE, bool)
        canvas[9:23, 20:39] = bitmap["base64_2_data"](text)
        yield {"geometryType": "bitmap", "bitmap": {"data": text, "origin": [20, 9]}}, canvas


def main():
    values = {}
    for kind in (coco, labelme, label_studio, yolo, supervisely):
        shapes, masks = zip(*kind(np.random.default_rng(32)), strict=True)
        masks = np.stack([np.asarray(mask).astype(bool).reshape(SIZE) for mask in masks])
        assert masks.any((1, 2)).mean() > 0.9
        values[f"{kind.__name__}:shapes"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
        values[f"{kind.__name__}:masks"] = np.packbits(masks)
        print(kind.__name__, masks.shape, masks.mean())
    np.savez_compressed(GOLDENS / "annotation_tools.npz", size=np.array(SIZE), **values)


if __name__ == "__main__":
    main()
