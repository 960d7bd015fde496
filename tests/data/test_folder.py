"""Your own folder: which files belong together, which split they are in, and what is left out."""

import os
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.check import check
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.sources.folder import read_raw
from deeplab_jax.errors import UserError
from tests.conftest import make_folder

MASK = np.zeros((8, 8), np.uint8)
MASK[:4] = 1


def make(root, images, masks=None):
    """A folder with files of these names; masks are named like the images by default."""
    for folder, names in (
        ("images", images),
        ("masks", masks or [os.path.splitext(name)[0] + ".png" for name in images]),
    ):
        for name in names:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(MASK if folder == "masks" else np.dstack([MASK * 90] * 3)).save(path)
    (root / "classes.txt").write_text("background\nleaf\n")
    return root


def ids(raw):
    return {split: [example.id for example in examples] for split, examples in raw.splits.items()}


def masks(raw):
    """The name of the mask of each image."""
    return {example.id: example.read_label.args[0].name for examples in raw.splits.values() for example in examples}


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "own", ["p0.png", "p1.png", "p2.png", "p3.png"])


# Lists


PLAIN = "p2\np0\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "p2.png\r\np0.png\r\n",
        "p2.jpg\np0.jpg\n",
        "\ufeffp2\np0",
        "images/p2.png\n./images/p0.png\n",
        "images\\p2.png\nimages\\p0.png\n",
        "/home/me/photos/images/p2.png\nC:\\photos\\images\\p0.png\n",
        "# names\n\np2\n  p0  \n",
        "images/p2.png masks/p2.png\nimages/p0.png masks/p0.png\n",
        "images/p2.png\tmasks/p2.png\nimages/p0.png\tmasks/p0.png\n",
        "images/p2.png,masks/p2.png\nimages/p0.png, masks/p0.png\n",
        "p2 p2\np0 p0\n",
        "/d/images/p2.png /d/masks/p2.png\n/d/images/p0.png /d/masks/p0.png\n",
        '"p2.png"\n"p0.png"\n',
    ],
)
def test_a_list_names_images_or_pairs(root, content):
    (root / "train.txt").write_text(content, encoding="utf-8", newline="")
    (root / "val.txt").write_text("p1\n")
    raw = read_raw(root)
    assert ids(raw) == {"train": ["p2", "p0"], "val": ["p1"]}
    assert masks(raw) == {"p2": "p2.png", "p0": "p0.png", "p1": "p1.png"}


def test_a_list_in_utf_16(root):
    (root / "train.txt").write_bytes("p2\r\np0\r\n".encode("utf-16"))
    assert ids(read_raw(root)) == {"train": ["p2", "p0"]}


def test_names_with_spaces_and_dots(tmp_path):
    names = ["weed (0)", "2024.05.01 weed", "a.b", "a", "weed"]
    root = make(tmp_path / "own", [f"{name}.png" for name in names])
    (root / "train.txt").write_text("weed (0).png\n2024.05.01 weed\na.b\n")
    (root / "val.txt").write_text("images/weed (0).png masks/weed (0).png\na.b.png\na\nweed.png,weed.png\n")
    assert ids(read_raw(root)) == {"train": names[:3], "val": ["weed (0)", "a.b", "a", "weed"]}


def test_a_pair_names_a_mask_of_another_name(root):
    shutil.move(root / "masks" / "p0.png", root / "masks" / "corrected.png")
    (root / "train.txt").write_text("images/p0.png masks/corrected.png\nimages/p1.png masks/p2.png\n")
    assert masks(read_raw(root)) == {"p0": "corrected.png", "p1": "p2.png"}


def test_lists_may_give_an_image_different_masks(root):
    (root / "train.txt").write_text("p0 p1\n")
    (root / "val.txt").write_text("p0 p2\np3\n")
    splits = read_raw(root).splits
    named = {split: [example.read_label.args[0].name for example in examples] for split, examples in splits.items()}
    assert named == {"train": ["p1.png"], "val": ["p2.png", "p3.png"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("p0\np9\n", r"train\.txt, line 2: `p9` is not an image in images/"),
        ("p0\nimages/p1.png masks/p9.png\n", r"train\.txt, line 2: `masks/p9\.png` after the image images/p1\.png"),
        ("p0 1\n", r"train\.txt, line 1: `1` after the image p0 is not a mask in masks/"),
        ("p0\n" + "x" * 10_000 + "\n", r"train\.txt, line 2: `x{100}` is not an image"),
        ("p0\np\xe9\n".encode("latin-1"), r"train\.txt, line 2 is not valid UTF-8"),
    ],
)
def test_a_wrong_line_is_named(root, content, message):
    (root / "train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_raw(root)


def test_an_image_that_is_listed_twice_is_refused(root, tmp_path):
    (root / "train.txt").write_text("p0\np1\nimages/p0.png\n")
    (root / "val.txt").write_text("p2\n")
    with pytest.raises(UserError, match="split train of folder lists p0 2 times; list each image once"):
        prepare("folder", source=root, data_dir=tmp_path / "data")
    assert check("folder", source=root).splits["train"].problems == ["p0 is listed 2 times"]


def test_an_image_in_train_and_val_is_reported(root, tmp_path, caplog):
    (root / "train.txt").write_text("p0\np1\n")
    (root / "val.txt").write_text("p1\np2\n")
    prepare("folder", source=root, data_dir=tmp_path / "data")
    assert "folder/train and folder/val share 1 image: p1" in caplog.text


def test_other_text_files_are_not_lists(root):
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:48,112,32::\n")
    (root / "README.txt").write_text("Leaves of 2024.\n\np0 is blurred.\n")
    (root / "train_log.txt").write_text("epoch 1\nepoch 2\n" + "p0 " * 5000)
    (root / "license.txt").write_bytes("© 2024 Jürgen".encode("latin-1"))
    (root / "five.txt").write_text("p0\np1\n")
    raw = read_raw(root)
    assert ids(raw) == {"five": ["p0", "p1"]}
    assert [note for note in raw.notes if "README.txt is not read as a list of a split" in note]
    assert [note for note in raw.notes if "labelmap.txt" in note]
    assert [note for note in raw.notes if "license.txt" in note]
    assert "2 images in no list: p2.png, p3.png" in raw.notes


# Folders


def test_folders_of_splits(tmp_path):
    root = make(tmp_path / "own", ["train/p0.png", "train/p1.png", "Validation/p0.png", "test2017/a/p0.png"])
    raw = read_raw(root)
    assert ids(raw) == {"val": ["Validation/p0"], "test": ["test2017/a/p0"], "train": ["train/p0", "train/p1"]}
    prepare("folder", source=root, data_dir=tmp_path / "data")
    assert data.open_source("folder", "train", data_dir=tmp_path / "data").ids() == ["train/p0", "train/p1"]


def test_folders_that_are_not_splits(tmp_path):
    names = [f"{city}/p{i}.png" for city in ("aachen", "bonn") for i in range(8)]
    raw = read_raw(make(tmp_path / "own", names))
    assert set(ids(raw)) == {"train", "val"}
    assert sorted(sum(ids(raw).values(), [])) == [name.removesuffix(".png") for name in names]
    assert set(masks(raw).values()) == {f"p{i}.png" for i in range(8)}


def test_images_and_masks_in_each_folder_of_a_split(tmp_path):
    for split, names in (("train", ["p0.png", "p1.png"]), ("val", ["p0.png"])):
        make(tmp_path / "own" / split, names)
    (tmp_path / "own" / "classes.txt").write_text("background\nleaf\n")
    assert ids(read_raw(tmp_path / "own")) == {"train": ["train/p0", "train/p1"], "val": ["val/p0"]}


def test_lists_may_name_images_in_folders(tmp_path):
    root = make(tmp_path / "own", ["aachen/p0.png", "aachen/p1.png", "bonn/p0.png", "bonn/p2.png"])
    (root / "train.txt").write_text("images/aachen/p0.png\nbonn/p0\np1\n")
    (root / "val.txt").write_text("x/images/bonn/p2.png x/masks/bonn/p2.png\n")
    assert ids(read_raw(root)) == {"train": ["aachen/p0", "bonn/p0", "aachen/p1"], "val": ["bonn/p2"]}


def test_a_name_in_several_folders_is_ambiguous(tmp_path):
    root = make(tmp_path / "own", ["aachen/p0.png", "bonn/p0.png"])
    (root / "train.txt").write_text("p0\n")
    with pytest.raises(UserError, match=r"`p0` is the name of several images \(aachen/p0, bonn/p0\); write the folder"):
        read_raw(root)


def test_images_inside_and_outside_of_splits_are_refused(tmp_path):
    root = make(tmp_path / "own", ["train/p0.png", "val/p1.png", "p2.png"])
    with pytest.raises(UserError, match=r"has images in folders of splits \(train, val\), but others .* such as p2"):
        read_raw(root)


# Names of masks


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("p{}.png", "p{}_mask.png"),
        ("p{}.png", "mask_p{}.png"),
        ("p{}.png", "p{}mask.PNG"),
        ("1{}.png", "1{}-labels.png"),
        ("1{}_sat.png", "1{}_mask.png"),
        ("image_{}.png", "mask_{}.png"),
        ("bonn/{}_leftImg8bit.png", "bonn/{}_gtFine_labelIds.png"),
        ("p{}.PNG", "p{}.png"),
        ("p{}.png", "p{}.png.png"),
        ("p{}.jpeg", "p{}.TIF"),
    ],
)
def test_words_around_names(tmp_path, image, mask):
    numbers = [*range(8), 11, 17]
    root = make(tmp_path / "own", [image.format(i) for i in numbers], [mask.format(i) for i in numbers])
    found = masks(read_raw(root))
    assert found == {os.path.splitext(image.format(i))[0]: os.path.basename(mask.format(i)) for i in numbers}


def test_words_are_not_digits(tmp_path):
    root = make(tmp_path / "own", ["1.png", "2.png"], ["10.png", "20.png"])
    for example in sum(read_raw(root).splits.values(), []):
        with pytest.raises(UserError, match=r"image .*[12]\.png has no mask; put [12]\.png in masks/"):
            example.read_label()


def test_a_missing_mask_is_named_like_the_others(tmp_path):
    root = make(tmp_path / "own", ["p0.png", "p1.png", "p2.png"], ["p0_mask.png", "p2_mask.png", "old.png"])
    with pytest.raises(UserError, match=r"image .*p1\.png has no mask; put p1_mask\.png in masks/"):
        prepare("folder", source=root, data_dir=tmp_path / "data")
    notes = check("folder", source=root).notes
    assert "images and masks are matched by parts of their names: p0 and p0_mask" in notes
    assert "1 masks without an image: old.png" in notes


def test_several_masks_per_image_are_refused(tmp_path):
    both = [f"p{i}_{kind}.png" for i in range(3) for kind in ("color", "labelIds")]
    root = make(tmp_path / "own", ["p0.png", "p1.png", "p2.png"], both)
    with pytest.raises(UserError, match=r"several masks per image \(p0_color.png, p0_labelIds.png\)"):
        read_raw(root)


def test_masks_that_predict_wrote(tmp_path):
    both = [f"p{i}_{kind}.png" for i in range(3) for kind in ("mask", "overlay")]
    root = make(tmp_path / "own", ["p0.png", "p1.png", "p2.png"], both)
    assert masks(read_raw(root)) == {f"p{i}": f"p{i}_mask.png" for i in range(3)}


def test_decomposed_names_match(tmp_path):
    root = make(tmp_path / "own", [unicodedata.normalize("NFD", "été.png"), "p1.png"], ["été.png", "p1.png"])
    (root / "train.txt").write_text("été\n", encoding="utf-8")
    assert masks(read_raw(root)) == {"été": "été.png"}


def test_two_masks_of_a_name_are_refused(root):
    shutil.copy(root / "masks" / "p0.png", root / "masks" / "p0.tif")
    with pytest.raises(UserError, match=r"masks has two images named p0 \(p0\.png, p0\.tif\)"):
        read_raw(root)


def test_files_that_are_left_out_are_listed(root, tmp_path, caplog):
    shutil.copy(root / "images" / "p0.png", root / "images" / "p4.jp2")
    shutil.copy(root / "masks" / "p0.png", root / "masks" / "p4.png")
    for folder in ("images", "masks"):
        (root / folder / "._p0.png").write_bytes(b"\0\5\x16\7")
    prepare("folder", source=root, data_dir=tmp_path / "data")
    assert "left out of images/: 1 .jp2 file (p4.jp2)" in caplog.text
    assert "1 masks without an image: p4.png" in caplog.text
    assert "._p0" not in caplog.text


def test_an_image_with_a_rotation_that_its_mask_lacks(tmp_path):
    root = make(tmp_path / "own", ["p0.png", "p1.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(root / "images" / "p0.png", exif=exif)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(root / "masks" / "p0.png")
    (root / "train.txt").write_text("p0\n")
    (example,) = read_raw(root).splits["train"]
    with pytest.raises(UserError, match="is 10x8 .* its mask is 8x10; .*EXIF rotation that the mask lacks"):
        example.read(read_raw(root).label_set)
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(root / "masks" / "p0.png", exif=exif)
    assert example.read(read_raw(root).label_set)[1].shape == (10, 8)


# Archives


def pack(root, path, *, folder="", macos=False):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                name = f"{folder}{file.relative_to(root).as_posix()}"
                archive.write(file, name)
                if macos:
                    parent, _, last = name.rpartition("/")
                    archive.writestr(f"__MACOSX/{parent}/._{last}", b"\0\5\x16\7")
    return path


@pytest.mark.parametrize(
    ("folder", "macos"), [("", False), ("photos/", False), ("photos/", True), ("", True), ("a/b/", True)]
)
def test_a_zip_is_checked_and_prepared(tmp_path, folder, macos):
    root = make_folder(tmp_path / "own")
    path = pack(root, tmp_path / "photos.zip", folder=folder, macos=macos)
    assert check("folder", source=path).ok
    prepare("folder", source=path, data_dir=tmp_path / "data")
    source = data.open_source("folder", "train+val", data_dir=tmp_path / "data")
    assert len(source) == 6


def test_messages_name_the_archive(tmp_path):
    root = make_folder(tmp_path / "own")
    (root / "masks" / "field_002.png").unlink()
    path = pack(root, tmp_path / "photos.zip", folder="photos/")
    with pytest.raises(UserError, match=rf"^image {path}/images/field_002\.jpg has no mask"):
        prepare("folder", source=path, data_dir=tmp_path / "data")
    problems = sum((split.problems for split in check("folder", source=path).splits.values()), [])
    assert len(problems) == 1
    assert problems[0].startswith(f"image {path}/images/field_002.jpg has no mask")
    (root / "classes.txt").unlink()
    path = pack(root, tmp_path / "without.zip", folder="photos/")
    with pytest.raises(UserError, match=rf"^{path}/classes\.txt does not exist"):
        check("folder", source=path)


def test_a_subfolder_without_masks_is_left_out(tmp_path):
    names = ["p0.png", "p1.png", "p2.png"]
    raw = read_raw(make(tmp_path, [*names, "originals/x.png", "originals/y.png"], names))
    assert sorted(sum(ids(raw).values(), [])) == ["p0", "p1", "p2"]
    assert "images/originals/ is left out: no image in it has a mask" in raw.notes


def test_masks_of_equal_and_of_longer_names_are_found_together(tmp_path):
    raw = read_raw(make(tmp_path, ["p0.png", "p1.png", "p2.png"], ["p0.png", "p1_mask.png", "p2_mask.png"]))
    assert masks(raw) == {"p0": "p0.png", "p1": "p1_mask.png", "p2": "p2_mask.png"}
