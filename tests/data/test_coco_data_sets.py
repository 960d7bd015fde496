"""COCO's data sets, each from a miniature in its official layout: what is prepared is what was drawn."""

import json

import numpy as np
import pytest
import scipy.io

from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.sources import coco_panoptic, coco_stuff, coco_voc
from deeplab_jax.errors import UserError
from tests.conftest import scene, write_jpeg
from tests.data.official_layouts import HEIGHT, WIDTH, class_of, draw, pack, photo, read, runs, save

# (name, id in labels.txt, dense class), from labels.txt and MMSegmentation's table by hand.
STUFF = [("person", 1, 0), ("stop sign", 13, 11), ("toothbrush", 90, 79), ("banner", 92, 80), ("wood", 182, 170)]
STUFF_IDS = np.array([index for _, index, _ in STUFF])


@pytest.mark.parametrize("parent", ["images", ""])
@pytest.mark.parametrize("masks", ["stuffthingmaps", "annotations", ""])
def test_coco_stuff(tmp_path, parent, masks):
    root = tmp_path / "coco"
    for seed, split in enumerate(("train", "val")):
        photo(root / parent / f"{split}2017" / f"00000000000{seed}.jpg", seed)
        stored = draw([*(STUFF_IDS - 1), 255], seed).astype(np.uint8)
        save(root / masks / f"{split}2017" / f"00000000000{seed}.png", stored)
    found = read("coco_stuff", root, tmp_path)
    for seed, split in enumerate(("train", "val")):
        expected = draw([*(target for _, _, target in STUFF), 255], seed)
        np.testing.assert_array_equal(found[split][f"00000000000{seed}"], expected)


def test_the_classes_of_coco_stuff_are_dense():
    assert coco_stuff.LABEL_SET.num_classes == 171
    assert all(class_of(coco_stuff.LABEL_SET, name) == target for name, _, target in STUFF)
    absent = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert set(range(182)) - set(coco_stuff.LABEL_MAP.ids) == absent


def test_coco_stuff_10k(tmp_path):
    root = tmp_path / "cocostuff"
    for seed, split in enumerate(("train", "test")):
        name = f"COCO_train2014_00000000000{seed}"
        photo(root / "images" / f"{name}.jpg", seed)
        (root / "annotations").mkdir(exist_ok=True)
        scipy.io.savemat(root / "annotations" / f"{name}.mat", {"S": draw([0, *STUFF_IDS], seed).astype(np.uint8)})
        (root / "imageLists").mkdir(exist_ok=True)
        (root / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
    found = read("coco_stuff10k", tmp_path, tmp_path)
    for seed, split in enumerate(("train", "test")):
        expected = draw([255, *(target for _, _, target in STUFF)], seed)
        np.testing.assert_array_equal(found[split][f"COCO_train2014_00000000000{seed}"], expected)
    (root / "annotations" / "COCO_train2014_000000000000.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"000000000000\.mat cannot be read as a MATLAB file with S"):
        read("coco_stuff10k", root, tmp_path / "again")


# COCO, panoptic


def make_panoptic(root, nested=False):
    """Two images; the ids of segments need all three bytes. Returns the expected labels."""
    segments = {0x010203: 1, 0x00FF01: 184, 0x7F0000: 200, 5: 90}
    expected = {}
    for seed, split in enumerate(("train", "val")):
        name = f"00000000000{seed}"
        photo(root / f"{split}2017" / f"{name}.jpg", seed)
        ids = draw([0, *segments], seed)
        colors = np.dstack([ids & 255, ids >> 8 & 255, ids >> 16]).astype(np.uint8)
        save(root / "annotations" / f"panoptic_{split}2017" / f"{name}.png", colors)
        content = {
            "images": [{"id": 7 + seed, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}],
            "annotations": [
                {
                    "image_id": 7 + seed,
                    "file_name": f"{name}.png",
                    "segments_info": [{"id": i, "category_id": c} for i, c in segments.items()],
                }
            ],
        }
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
        expected[split] = draw([255, 0, 116, 132, 79], seed)
    return expected


def test_coco_panoptic(tmp_path):
    expected = make_panoptic(tmp_path / "coco")
    found = read("coco_panoptic", tmp_path / "coco", tmp_path)
    labels = coco_panoptic.LABEL_SET
    assert [labels.class_names[i] for i in (0, 79, 80, 116, 132)] == [
        "person", "toothbrush", "banner", "tree-merged", "rug-merged",
    ]  # fmt: skip
    for seed, split in enumerate(("train", "val")):
        np.testing.assert_array_equal(found[split][f"00000000000{seed}"], expected[split])


def test_coco_panoptic_from_its_archives(tmp_path):
    expected = make_panoptic(tmp_path / "coco")
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "val"):
        pack(tmp_path / "coco" / f"{split}2017", packed / f"{split}2017.zip")
        folder = tmp_path / "coco" / "annotations" / f"panoptic_{split}2017"
        pack(folder, folder.with_suffix(".zip"))
        for file in folder.glob("*"):
            file.unlink()
        folder.rmdir()
    pack(tmp_path / "coco" / "annotations", packed / "panoptic_annotations_trainval2017.zip")
    found = read("coco_panoptic", packed, tmp_path)
    np.testing.assert_array_equal(found["val"]["000000000001"], expected["val"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["annotations"][0].pop("segments_info"), "the segments of 000000000001.png are wrong"),
        (
            lambda values: values["annotations"][0]["segments_info"].pop(),
            "contains segment 5, which its",
        ),
        (
            lambda values: values["annotations"][0]["segments_info"][0].update(category_id=12),
            "contains id 12, which",
        ),
        (lambda values: values["annotations"][0].update(image_id=99), "None is not the name of a file"),
        (lambda values: values["annotations"][0].update(file_name="../a.png"), "'../a.png' is not the name of a file"),
        (lambda values: values.pop("images"), "has no list of images"),
    ],
)
def test_damaged_panoptic_annotations_are_named(tmp_path, change, message):
    make_panoptic(tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "panoptic_val2017.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        prepare("coco_panoptic", source=tmp_path / "coco", data_dir=tmp_path / "data")


# COCO with the classes of VOC

SIDE = 60


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def make_instances(root, objects_of):
    """One image per entry: its objects are (category, segmentation, area)."""
    for split in ("train", "val"):
        images, annotations = [], []
        for i, objects in enumerate(objects_of):
            name = f"{split}_{i}.jpg"
            write_jpeg(root / "images" / f"{split}2017" / name, scene(i, SIDE, SIDE)[0])
            images.append({"id": i, "file_name": name, "height": SIDE, "width": SIDE})
            annotations += [
                {"id": len(annotations), "image_id": i, "category_id": category, "area": area, "segmentation": shape}
                for category, shape, area in objects
            ]
        (root / "annotations").mkdir(exist_ok=True)
        content = json.dumps({"images": images, "annotations": annotations})
        (root / "annotations" / f"instances_{split}2017.json").write_text(content)
    return root


PERSON, DOG, TOASTER = 1, 18, 80
CROWD = np.zeros((SIDE, SIDE), np.uint8)
CROWD[50:, :] = 1
OBJECTS = [
    # Two objects that overlap, one of no class of VOC, and a crowd as run lengths.
    [
        (DOG, box(10, 10, 30, 30), 400),
        (PERSON, box(0, 0, 40, 40), 1600),
        (TOASTER, box(45, 0, 60, 20), 300),
        (PERSON, runs(CROWD), 600),
    ],
    [(DOG, box(0, 0, 30, 30), 900)],  # too small
    [(DOG, box(0, 0, 30, 30), 900), (PERSON, box(0, 0, 30, 29), 870)],  # 1,770 in sum, 900 in the image
    [(TOASTER, box(0, 0, 60, 60), 3600)],
    [(DOG, box(0, 0, 30, 30), 900), (PERSON, box(30, 30, 60, 60), 900)],
]


def test_an_object_of_coco_is_the_union_of_its_polygons(tmp_path):
    parts = box(0, 0, 20, 20) + box(10, 10, 30, 30)
    label = coco_voc.draw([(7, 700.0, parts)], (SIDE, SIDE), "smaller", tmp_path)
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[:20, :20] = expected[10:30, 10:30] = 7
    np.testing.assert_array_equal(label, expected)


def test_coco_with_the_classes_of_voc(tmp_path):
    found = read("coco_voc", make_instances(tmp_path / "coco", OBJECTS), tmp_path)
    assert {split: list(labels) for split, labels in found.items()} == {
        "train": ["train_0", "train_4"],
        "val": ["val_0", "val_4"],
    }
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[:40, :40] = expected[50:] = 15
    expected[10:30, 10:30] = 12
    np.testing.assert_array_equal(found["train"]["train_0"], expected)


def test_coco_as_torchvision_reads_it(tmp_path):
    found = read("coco_voc_torchvision", make_instances(tmp_path / "coco", OBJECTS), tmp_path)
    assert {split: list(labels) for split, labels in found.items()} == {
        "train": ["train_0", "train_2", "train_4"],
        "val": [f"val_{i}" for i in range(5)],  # torchvision leaves nothing out
    }
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[:40, :40] = expected[50:] = 15
    expected[10:30, 10:30] = 255
    np.testing.assert_array_equal(found["train"]["train_0"], expected)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ((PERSON, [[0, 0, 10]], 2000), "instances_train2017.json is damaged: an object in an image of 60x60"),
        ((PERSON, {"size": [60, 60], "counts": [1, 2]}, 2000), "run lengths describe 3 pixels"),
        ((PERSON, None, 2000), "is damaged"),
        ((PERSON, box(0, 0, 9, 9), None), "object 0 has no area"),
    ],
)
def test_damaged_instances_are_named(tmp_path, annotation, message):
    root = make_instances(tmp_path / "coco", [[annotation]])
    with pytest.raises(UserError, match=message):
        prepare("coco_voc", source=root, data_dir=tmp_path / "data")
