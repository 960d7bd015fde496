"""Public data sets, each from a miniature in its official layout: what is prepared is what was drawn."""

import json
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.prepare import open_raw, prepare
from deeplab_jax.data.sources import ade20k, cityscapes, coco_panoptic, coco_stuff, oxford_pet, pascal_context
from deeplab_jax.errors import UserError
from tests.conftest import scene, write_jpeg
from tests.support.preparation import assert_nothing_left

HEIGHT, WIDTH = 12, 20


def draw(values, seed=0):
    """A label of random rectangles with every one of `values`."""
    rng = np.random.default_rng(seed)
    values = np.asarray(values)
    label = values[rng.integers(0, len(values), (HEIGHT // 4, WIDTH // 4))].repeat(4, 0).repeat(4, 1)
    label.flat[: len(values)] = values
    return label


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def photo(path, seed=0):
    if path.suffix == ".jpg":
        write_jpeg(path, scene(seed, HEIGHT, WIDTH)[0])
    else:
        save(path, scene(seed, HEIGHT, WIDTH)[0])


def read(name, source, tmp_path, **options):
    """The prepared labels by split and id."""
    data_dir = tmp_path / f"data_{name}"
    prepare(name, source=source, data_dir=data_dir, **options)
    found = {}
    for split in data.split_names(name, data_dir=data_dir):
        opened = data.open_source(name, split, data_dir=data_dir)
        labels = [label for _, label in data.decode_examples(opened, range(len(opened)))]
        found[split] = dict(zip(opened.ids(), labels, strict=True))
    return found


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def class_of(label_set, name):
    return label_set.class_names.index(name)


# Cityscapes


CITYSCAPES_IDS = np.arange(34, dtype=np.uint8)  # every id that masks contain
# The table of the publisher, cityscapesscripts/helpers/labels.py.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
CITYSCAPES_SPLITS = [
    ("train", "gtFine", "train", "aachen"),
    ("val", "gtFine", "val", "lindau"),
    ("train_coarse", "gtCoarse", "train", "aachen"),
    ("train_extra", "gtCoarse", "train_extra", "augsburg"),
]


@pytest.fixture
def cityscapes_folder(tmp_path):
    root = tmp_path / "cityscapes"
    for seed, (_, kind, folder, city) in enumerate(CITYSCAPES_SPLITS):
        name = f"{city}_000000_{folder == 'val':06d}"
        photo(root / "leftImg8bit" / folder / city / f"{name}_leftImg8bit.png", seed)
        save(root / kind / folder / city / f"{name}_{kind}_labelIds.png", draw(CITYSCAPES_IDS, seed))
        save(root / kind / folder / city / f"{name}_{kind}_instanceIds.png", draw([0, 26001], seed).astype(np.uint16))
    photo(root / "leftImg8bit" / "test" / "berlin" / "berlin_000000_000019_leftImg8bit.png")
    return root


def test_cityscapes(cityscapes_folder, tmp_path):
    found = read("cityscapes", cityscapes_folder, tmp_path)
    assert list(found) == ["train", "val", "train_coarse", "train_extra"]
    for seed, (split, _, folder, city) in enumerate(CITYSCAPES_SPLITS):
        ids, label = draw(CITYSCAPES_IDS, seed), found[split][f"{city}_000000_{folder == 'val':06d}"]
        for source in CITYSCAPES_IDS:
            assert (label[ids == source] == TRAIN_IDS.get(int(source), 255)).all()
        assert set(np.unique(label)) == {*range(19), 255}
        scored = label != 255
        np.testing.assert_array_equal(cityscapes.LABEL_MAP.to_source(label)[scored], ids[scored])
    labels = data.open_source("cityscapes", "val", data_dir=tmp_path / "data_cityscapes").label_set
    assert (labels.class_names[13], labels.palette[13]) == ("car", (0, 0, 142))


def test_cityscapes_from_its_archives(cityscapes_folder, tmp_path):
    expected = read("cityscapes", cityscapes_folder, tmp_path)
    packed = tmp_path / "packed"
    packed.mkdir()
    for folder, name in (("leftImg8bit", "leftImg8bit_trainvaltest.zip"), ("gtFine", "gtFine_trainvaltest.zip")):
        pack(cityscapes_folder / folder, packed / name)
    (tmp_path / "again").mkdir()
    found = read("cityscapes", packed, tmp_path / "again")
    assert list(found) == ["train", "val"]
    np.testing.assert_array_equal(found["val"]["lindau_000000_000001"], expected["val"]["lindau_000000_000001"])


def test_an_incomplete_copy_is_reported(cityscapes_folder, tmp_path, caplog):
    prepare("cityscapes", source=cityscapes_folder, data_dir=tmp_path / "data")
    line = "split val of cityscapes: 1 images, but 500 are published; check that your copy is complete"
    assert line in caplog.messages


def test_a_missing_mask_is_named(cityscapes_folder, tmp_path):
    mask = next(cityscapes_folder.glob("gtFine/val/*/*_labelIds.png"))
    mask.unlink()
    with pytest.raises(UserError, match=rf"{mask.name} does not exist"):
        prepare("cityscapes", source=cityscapes_folder, data_dir=tmp_path / "data")
    assert_nothing_left("cityscapes", tmp_path / "data")


@pytest.mark.parametrize("name", ["cityscapes", "coco_stuff", "coco_stuff10k", "pascal_context"])
def test_data_sets_without_a_download_say_where_they_are(tmp_path, name):
    with pytest.raises(UserError, match=r"has no public download; download it from https?://.* and pass it with --so"):
        prepare(name, data_dir=tmp_path / "data")


@pytest.mark.parametrize("name", sorted(set(data.dataset_names()) - {"synthetic", "folder", "sbd"}))
def test_another_layout_is_refused(tmp_path, name):
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="does not have .*layout") as caught, open_raw(name, tmp_path / "empty"):
        pass
    assert "\n" not in str(caught.value)


# ADE20K


@pytest.fixture
def ade_folder(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for seed, (folder, short) in enumerate((("training", "train"), ("validation", "val"))):
        photo(root / "images" / folder / f"ADE_{short}_00000001.jpg", seed)
        ids = draw(np.arange(151, dtype=np.uint8), seed)
        save(root / "annotations" / folder / f"ADE_{short}_00000001.png", ids)
    return root


def test_ade20k_begins_at_the_first_class(ade_folder, tmp_path):
    found = read("ade20k", ade_folder.parent, tmp_path)
    for seed, split in enumerate(("train", "val")):
        ids = draw(np.arange(151, dtype=np.uint8), seed)
        expected = np.where(ids == 0, 255, ids.astype(int) - 1)
        np.testing.assert_array_equal(found[split][f"ADE_{split}_00000001"], expected)
    labels = ade20k.LABEL_SET
    assert [labels.class_names[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    assert [labels.palette[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]


def test_ade20k_with_151_classes_keeps_the_ids(ade_folder, tmp_path):
    label = read("ade20k_151", ade_folder, tmp_path)["val"]["ADE_val_00000001"]
    ids = draw(np.arange(151, dtype=np.uint8), 1)
    np.testing.assert_array_equal(label, np.where(ids == 0, 255, ids))
    assert ade20k.LABEL_SET_151.class_names[1] == "wall"


# COCO-Stuff

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


def runs(mask):
    """Uncompressed run lengths, column by column."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(mask.shape), "counts": [int(count) for count in counts if count or count is counts[0]]}


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


# Pascal Context


CONTEXT = [0, 1, 2, 37, 59]  # background, aeroplane, bag, person, wood
CONTEXT_459 = [0, 2, 9, 284, 458]


def make_context(root, kind):
    for seed, split in enumerate(("train", "val")):
        name = f"2008_00000{seed}"
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        listing = root / "ImageSets" / ("SegmentationContext" if kind == "png" else "Main") / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(f"{name}\n")
        if kind == "png":
            save(root / "SegmentationClassContext" / f"{name}.png", draw(CONTEXT, seed).astype(np.uint8))
        else:
            (root / "trainval").mkdir(exist_ok=True)
            label = draw([*CONTEXT_459, 255, 300, 459], seed).astype(np.uint16)  # the last three are other classes
            scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": label})
    return root


@pytest.mark.parametrize("kind", ["png", "mat"])
@pytest.mark.parametrize("name", ["pascal_context", "pascal_context_59"])
def test_pascal_context(tmp_path, kind, name):
    found = read(name, make_context(tmp_path / "VOC2010", kind), tmp_path)
    classes = np.array(CONTEXT) if name == "pascal_context" else np.array([255, *(i - 1 for i in CONTEXT[1:])])
    if kind == "mat":
        classes = np.array([*classes, *[classes[0]] * 3])
    for seed, split in enumerate(("train", "val")):
        np.testing.assert_array_equal(found[split][f"2008_00000{seed}"], draw(classes, seed))


def test_the_classes_of_pascal_context_are_alphabetical():
    names = pascal_context.LABEL_SET.class_names
    assert len(names) == 60
    assert list(names[1:]) == sorted(names[1:])
    assert [names[i] for i in CONTEXT] == ["background", "aeroplane", "bag", "person", "wood"]


# Oxford-IIIT Pet


@pytest.fixture
def pet_folder(tmp_path):
    root = tmp_path / "pets"
    lists = {"trainval": ["Abyssinian_5", "beagle_116"], "test": ["chihuahua_121"]}
    for split, names in lists.items():
        for seed, name in enumerate(names):
            photo(root / "images" / f"{name}.jpg", seed)
            save(root / "annotations" / "trimaps" / f"{name}.png", draw([1, 2, 3], seed).astype(np.uint8))
        listing = root / "annotations" / f"{split}.txt"
        listing.write_text("#comment\n" + "".join(f"{name} 1 1 1\n" for name in names))
    rgba = np.dstack([scene(0, HEIGHT, WIDTH)[0], np.full((HEIGHT, WIDTH), 255, np.uint8)])
    Image.fromarray(rgba).save(root / "images" / "Abyssinian_5.jpg", format="PNG")
    Image.fromarray(rgba[..., :3]).quantize().save(root / "images" / "chihuahua_121.jpg", format="GIF")
    for junk in ("images/._Abyssinian_5.jpg", "annotations/trimaps/._Abyssinian_5.png", "images/Abyssinian_101.mat"):
        (root / junk).write_bytes(b"junk")
    return root


@pytest.mark.parametrize(
    ("name", "names", "classes"),
    [
        ("oxford_pet", ("pet", "background", "outline"), [0, 1, 2]),
        ("oxford_pet_binary", ("background", "pet"), [1, 0, 1]),
        ("oxford_pet_ignore", ("background", "pet"), [1, 0, 255]),
    ],
)
def test_oxford_pet(pet_folder, tmp_path, name, names, classes):
    found = read(name, pet_folder, tmp_path)
    assert {split: list(labels) for split, labels in found.items()} == {
        "trainval": ["Abyssinian_5", "beagle_116"],
        "test": ["chihuahua_121"],
    }
    for labels in found.values():
        for seed, label in enumerate(labels.values()):
            np.testing.assert_array_equal(label, draw(classes, seed))
    opened = data.open_source(name, "test", data_dir=tmp_path / f"data_{name}")
    assert opened.label_set.class_names == names
    ((image, _),) = data.decode_examples(opened, [0])
    assert image.shape == (HEIGHT, WIDTH, 3)


def test_disguised_files_keep_their_pixels(pet_folder, tmp_path):
    read("oxford_pet", pet_folder, tmp_path)
    opened = data.open_source("oxford_pet", "trainval", data_dir=tmp_path / "data_oxford_pet")
    ((image, _),) = data.decode_examples(opened, [0])
    np.testing.assert_array_equal(image, scene(0, HEIGHT, WIDTH)[0])


def test_downloads_are_those_of_the_publisher(pet_folder, tmp_path, monkeypatch):
    archives = {
        published.url: pack(pet_folder / folder, tmp_path / f"{folder}.zip")
        for published, folder in zip(oxford_pet.ARCHIVES, ("images", "annotations"), strict=True)
    }
    fetched = []

    def download(url, path, *, digest, otherwise):
        fetched.append((url, digest, path.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archives[url].read_bytes())

    monkeypatch.setattr("deeplab_jax.data.prepare.download", download)
    found = read("oxford_pet", None, tmp_path)
    assert len(found["trainval"]) == 2
    assert fetched == [(file.url, file.digest, file.file_name) for file in oxford_pet.ARCHIVES]
