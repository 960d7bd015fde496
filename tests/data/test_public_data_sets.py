"""Public data sets, each from a miniature in its official layout: what is prepared is what was drawn."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.check import check
from deeplab_jax.data.prepare import open_raw, prepare
from deeplab_jax.data.sources import ade20k, cityscapes, oxford_pet, pascal_context
from deeplab_jax.errors import UserError
from deeplab_jax.labels import ADE20K
from tests.conftest import scene
from tests.data.official_layouts import HEIGHT, WIDTH, compressed, draw, pack, photo, read, runs, save
from tests.support.preparation import assert_nothing_left

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
    assert line in check("cityscapes", source=cityscapes_folder).notes


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
    labels = ADE20K
    assert [labels.class_names[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    assert [labels.palette[i] for i in (0, 12, 149)] == [(120, 120, 120), (150, 5, 61), (92, 0, 255)]


def test_ade20k_with_151_classes_keeps_the_ids(ade_folder, tmp_path):
    label = read("ade20k_151", ade_folder, tmp_path)["val"]["ADE_val_00000001"]
    ids = draw(np.arange(151, dtype=np.uint8), 1)
    np.testing.assert_array_equal(label, np.where(ids == 0, 255, ids))
    assert ade20k.LABEL_SET_151.class_names[1] == "wall"


# COCO-Stuff

# Pascal Context


CONTEXT = [0, 1, 2, 37, 59]  # background, aeroplane, bag, person, wood
CONTEXT_459 = [0, 2, 9, 284, 458]


def make_context(root, kind):
    for seed, split in enumerate(("train", "val")):
        name = f"2008_00000{seed}"
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        if kind == "json":
            continue
        listing = root / "ImageSets" / ("SegmentationContext" if kind == "png" else "Main") / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(f"{name}\n")
        if kind == "png":
            save(root / "SegmentationClassContext" / f"{name}.png", draw(CONTEXT, seed).astype(np.uint8))
        else:
            (root / "trainval").mkdir(exist_ok=True)
            label = draw([*CONTEXT_459, 255, 300, 459], seed).astype(np.uint16)  # the last three are other classes
            scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": label})
    if kind == "json":
        (root / "trainval_merged.json").write_text(json.dumps(context_json()))
    return root


def context_json():
    """Annotations as detail-api reads them. Regions cover those before them."""
    images, regions = [], []
    for seed, phase in enumerate(("train", "val", "test")):
        label = draw([*CONTEXT_459, 255, 300, 459], seed)
        number = 2_008_000_000 + seed
        images.append(
            {"image_id": number, "file_name": f"2008_00000{seed}.jpg", "phase": phase, "height": HEIGHT, "width": WIDTH}
        )
        covered = np.zeros(label.shape, bool)
        for category in [value for value in np.unique(label).tolist() if value][::-1]:
            covered |= label == category
            region = {"image_id": number, "category_id": category, "segmentation": compressed(runs(covered))}
            regions.insert(0, region)
    return {"images": images, "annos_segmentation": regions, "parts": []}


@pytest.mark.parametrize("kind", ["png", "json", "mat"])
@pytest.mark.parametrize("name", ["pascal_context", "pascal_context_59"])
def test_pascal_context(tmp_path, kind, name):
    found = read(name, make_context(tmp_path / "VOC2010", kind), tmp_path)
    classes = np.array(CONTEXT) if name == "pascal_context" else np.array([255, *(i - 1 for i in CONTEXT[1:])])
    if kind != "png":
        classes = np.array([*classes, *[classes[0]] * 3])
    for seed, split in enumerate(("train", "val")):
        np.testing.assert_array_equal(found[split][f"2008_00000{seed}"], draw(classes, seed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["annos_segmentation"][0].pop("category_id"), "is damaged: region None has no category"),
        (
            lambda values: values["annos_segmentation"][-1]["segmentation"].update(size=[1, 2]),
            r"is damaged: a region in an image of 12x20: its size \[1, 2\] is not that of the image",
        ),
        (lambda values: values["annos_segmentation"][-1].update(category_id=460), "contains id 460"),
        (lambda values: values["images"][0].update(file_name="../a.jpg"), "is not the name of a file"),
        (lambda values: values["images"][0].update(height=0), "image 2008000000 has no size, or an implausible one"),
        (lambda values: values.pop("annos_segmentation"), "is damaged: it has no list of annos_segmentation"),
    ],
)
def test_damaged_annotations_of_pascal_context_are_named(tmp_path, change, message):
    root = make_context(tmp_path / "VOC2010", "json")
    values = context_json()
    change(values)
    (root / "trainval_merged.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        prepare("pascal_context", source=root, data_dir=tmp_path / "data")


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
