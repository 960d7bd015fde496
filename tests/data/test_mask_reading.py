"""All masks of a data set decide how each of them is read; data that fits no reading is refused with the fix."""

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data
from deeplab_jax.config import base_config
from deeplab_jax.data.check import check
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError

LEAF = np.zeros((8, 8), np.uint8)
LEAF[:4, :4] = 1
STEM = np.where(np.arange(64).reshape(8, 8) > 40, np.uint8(2), LEAF)
NAMES = "background\nleaf\nstem\n"
COLORS = "background 0 0 0\nleaf 48 112 32\nstem 176 112 32\n"
TABLE = np.zeros((256, 3), np.uint8)
TABLE[1], TABLE[2], TABLE[255] = (48, 112, 32), (176, 112, 32), (224, 224, 192)


def gray(label):
    return Image.fromarray(label)


def indexed(label, palette=TABLE):
    image = Image.fromarray(label)
    image.putpalette(palette.tobytes())
    return image


def rgb(label, table=TABLE):
    return Image.fromarray(table[label])


def rgba(label, opacity, table=TABLE):
    return Image.fromarray(np.dstack([table[label], opacity]))


def make(root, classes, *masks):
    """A folder with these masks, the images p0, p1, ... and lists: all of them are in train, and the last in val."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(root / "images" / f"p{i}.png")
        mask.save(root / "masks" / f"p{i}.png")
    (root / "classes.txt").write_text(classes)
    (root / "train.txt").write_text("".join(f"p{i}\n" for i in range(len(masks))))
    (root / "test.txt").write_text(f"p{len(masks) - 1}\n")
    return root


@pytest.fixture
def labels_of(tmp_path):
    """The labels that a folder of masks becomes."""

    def prepared(classes, *masks):
        prepare("folder", source=make(tmp_path / "own", classes, *masks), data_dir=tmp_path / "data")
        source = data.open_source("folder", "train", data_dir=tmp_path / "data")
        return [label for _, label in data.decode_examples(source, range(len(source)))]

    return prepared


@pytest.fixture
def assert_refused(tmp_path):
    """Asserts that both `prepare` and `check` refuse a folder of masks with one line."""

    def fails(message, classes, *masks):
        root = make(tmp_path / "own", classes, *masks)
        for use in (
            lambda: prepare("folder", source=root, data_dir=tmp_path / "data"),
            lambda: check("folder", source=root),
        ):
            with pytest.raises(UserError, match=message) as caught:
                use()
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "data" / "folder").exists()

    return fails


# 0 and 255


def drawn(label):
    return np.where(label > 0, np.uint8(255), label)


FULL, EMPTY = np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize("wrap", [gray, indexed, lambda label: Image.fromarray(np.dstack([label] * 3))])
@pytest.mark.parametrize(
    ("classes", "fix"),
    [
        ("polyp\n", "and id 0 is polyp: make background the first line of classes.txt"),
        ("background\npolyp\n", r"save the foreground as 1, or add colors to classes.txt \(`background 0 0 0`"),
        (NAMES, "save each of the 3 classes as its id, 0 to 2"),
    ],
)
def test_masks_of_0_and_255_are_refused(assert_refused, wrap, classes, fix):
    palette = TABLE.copy()
    palette[255] = (255, 255, 255)
    wrapped = (lambda label: indexed(label, palette)) if wrap is indexed else wrap
    assert_refused(rf"masks contain only 0 and 255 .*{fix}", classes, wrapped(drawn(LEAF)), wrapped(drawn(STEM)))


@pytest.mark.parametrize("masks", [(FULL, EMPTY), (EMPTY, FULL, EMPTY), (FULL, FULL)])
def test_masks_that_are_0_or_255_everywhere_are_refused(assert_refused, masks):
    assert_refused("masks contain only (0 and )?255", "background\npolyp\n", *map(gray, masks))


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_refused(assert_refused):
    assert_refused(
        r"some masks contain 1 \(.*p1\.png\), others only 0 and 255 \(.*p0\.png\): save polyp as 1 everywhere",
        "background\npolyp\n",
        gray(drawn(LEAF)),
        gray(LEAF),
    )


def test_a_line_of_classes_txt_confirms_the_ignore_label(labels_of):
    expected = [drawn(LEAF), LEAF]
    np.testing.assert_array_equal(labels_of("__ignore__\nbackground\npolyp\n", *map(gray, expected)), expected)


def test_ignored_pixels_next_to_classes_are_accepted(labels_of):
    mixed = LEAF.copy()
    mixed[7] = 255
    expected = [drawn(LEAF), mixed, LEAF]
    np.testing.assert_array_equal(labels_of("background\npolyp\n", *map(gray, expected)), expected)


def test_0_and_255_are_colors_where_classes_have_them(labels_of):
    classes = "background 0 0 0\npolyp 255 255 255\n"
    found = labels_of(classes, gray(drawn(LEAF)), gray(EMPTY), gray(FULL), Image.fromarray(LEAF > 0))
    np.testing.assert_array_equal(found, [LEAF, EMPTY, FULL // 255, LEAF])


def test_65535_is_not_a_class(assert_refused):
    mask = Image.fromarray(LEAF.astype(np.uint16) * 65535)
    assert_refused(
        "gray masks contain only 0 and 65535 .*; save the foreground as 1", "background\npolyp\n", mask, mask
    )


@pytest.mark.parametrize(
    ("classes", "label"), [("soil\nleaf\nstem\n", STEM + 1), ("leaf\nstem\n", STEM), ("leaf\n", LEAF)]
)
def test_one_id_more_than_classes_is_refused(assert_refused, classes, label):
    assert_refused(
        rf"gray masks contain ids {label.min()} to {label.max()} .*; add the class of id 0 as the first line",
        classes,
        gray(label),
        gray(label),
    )


# Gray ids and gray colors


@pytest.mark.parametrize("classes", [NAMES, COLORS])
@pytest.mark.parametrize("wrap", [gray, lambda label: Image.fromarray(np.dstack([label] * 3))])
def test_gray_ids_are_read_with_and_without_colors(labels_of, classes, wrap):
    np.testing.assert_array_equal(labels_of(classes, wrap(LEAF), wrap(STEM)), [LEAF, STEM])


def test_gray_masks_and_colored_masks_may_be_mixed(labels_of):
    np.testing.assert_array_equal(labels_of(COLORS, gray(STEM), rgb(STEM), indexed(STEM)), [STEM] * 3)


def test_gray_values_that_are_ids_and_other_colors_are_refused(assert_refused):
    classes = "leaf 1 1 1\nbackground 0 0 0\n"
    assert_refused(
        "gray value [01] of the masks .* is the id of one class and the color of another",
        classes,
        gray(LEAF),
        gray(LEAF),
    )


def test_swapped_channels_are_named(assert_refused):
    bgr = rgb(STEM, TABLE[:, ::-1])
    assert_refused(
        r"contains color \(32, 112, (48|176)\), .* red and blue swapped; save the masks as RGB", COLORS, bgr, bgr
    )


def test_blurred_colors_are_named_once(assert_refused):
    blurred = rgb(STEM).resize((32, 32), Image.BILINEAR)
    assert_refused(
        r"the masks contain \d\d+ colors that are not assigned .* without antialiasing", COLORS, blurred, blurred
    )


def test_an_unknown_color_is_named(tmp_path):
    table = TABLE.copy()
    table[1] = (1, 2, 3)
    root = make(tmp_path / "other", COLORS, rgb(STEM, table))
    assert "contains color (1, 2, 3), which is not assigned" in check("folder", source=root).splits["train"].problems[0]


def test_black_masks_among_colored_ones_are_colors(labels_of):
    classes = "leaf 48 112 32\nstem 176 112 32\nbackground 0 0 0\n"
    found = labels_of(classes, rgb(STEM), rgb(EMPTY))
    np.testing.assert_array_equal(found, [np.array([2, 0, 1])[STEM], np.full((8, 8), 2)])


# Palettes


ORDER = np.array([2, 0, 1])  # index of each class in another palette


def reordered(label):
    palette = np.zeros((256, 3), np.uint8)
    palette[ORDER] = TABLE[:3]
    return indexed(ORDER[label].astype(np.uint8), palette)


def test_a_palette_in_another_order_is_read_by_color(labels_of):
    found = labels_of(COLORS, reordered(STEM), indexed(STEM), reordered(EMPTY))
    np.testing.assert_array_equal(found, [STEM, STEM, EMPTY])


def test_a_palette_that_matches_in_part_is_refused(assert_refused):
    palette = TABLE.copy()
    palette[1], palette[2] = (176, 112, 32), (1, 2, 3)
    assert_refused(
        r"palette image whose index 1 has the color of stem in classes.txt, \(176, 112, 32\), but other colors",
        COLORS,
        indexed(STEM, palette),
        indexed(STEM, palette),
    )


def test_palettes_that_differ_are_refused_without_colors(assert_refused):
    assert_refused(
        "is index 0 in mask .*, but 1 in .*, so their indices are not class ids",
        NAMES,
        indexed(STEM),
        reordered(STEM),
    )


def shortened(label, size):
    """A palette image with the colors of the first `size` indices alone."""
    image = Image.fromarray(label)
    image.putpalette(TABLE[:size].tobytes())
    return image


@pytest.mark.parametrize("swap", [False, True])
def test_palettes_of_the_colors_that_each_mask_contains_are_refused(assert_refused, swap):
    palette = TABLE.copy()
    palette[1] = TABLE[2]  # the file has two colors, of which the second is that of stem
    pair = [indexed(STEM), indexed((STEM == 2).astype(np.uint8), palette)]
    assert_refused("is index [12] in mask .*, but [12] in .*, so their indices", NAMES, *(pair[::-1] if swap else pair))


BORDER = np.where(np.arange(8) == 7, np.uint8(255), STEM)


@pytest.mark.parametrize("size", [200, 256])
def test_index_255_without_a_color_of_its_own_is_ignored(labels_of, size):
    table = TABLE.copy()
    table[255] = 0
    mask = indexed(BORDER, table) if size == 256 else shortened(BORDER, size)
    np.testing.assert_array_equal(labels_of(COLORS, mask, mask), [BORDER, BORDER])


def test_index_255_without_a_color_of_its_own_is_refused_where_others_are_colors(assert_refused):
    palette = np.zeros((256, 3), np.uint8)
    palette[ORDER] = TABLE[:3]
    label = np.where(BORDER == 255, 255, ORDER[BORDER % 255]).astype(np.uint8)
    assert_refused("index 255 has the color of another index; give ignored", COLORS, indexed(label, palette))


def test_a_palette_of_other_colors_is_read_by_index(labels_of, tmp_path):
    palette = np.full((256, 3), 9, np.uint8)
    palette[1], palette[2] = (200, 1, 1), (1, 1, 200)
    np.testing.assert_array_equal(labels_of(COLORS, indexed(STEM, palette), indexed(LEAF, palette)), [STEM, LEAF])
    assert check("folder", source=tmp_path / "own").notes == (
        "palette masks are read by index, because their colors are not those of classes.txt",
    )


def test_a_transparent_palette_entry_keeps_its_id(labels_of, tmp_path):
    root = make(tmp_path / "written", NAMES, indexed(STEM))
    indexed(STEM).save(root / "masks" / "p0.png", transparency=0)
    np.testing.assert_array_equal(labels_of(NAMES, Image.open(root / "masks" / "p0.png")), [STEM])


def saved_with_transparent_index(path, mask):
    mask.save(path, transparency=0)
    return Image.open(path)


def test_a_transparent_palette_entry_keeps_its_color(labels_of, tmp_path):
    mask = saved_with_transparent_index(tmp_path / "mask.png", indexed(STEM))
    classes = "leaf 48 112 32\nstem 176 112 32\nbackground 0 0 0\n"
    np.testing.assert_array_equal(labels_of(classes, mask), [np.array([2, 0, 1])[STEM]])


def test_a_transparent_palette_entry_without_a_class_is_ignored(labels_of, tmp_path):
    mask = saved_with_transparent_index(tmp_path / "mask.png", indexed(STEM))
    np.testing.assert_array_equal(labels_of(COLORS.partition("\n")[2], mask), [np.array([255, 0, 1])[STEM]])
    assert check("folder", source=tmp_path / "own").notes == ("transparent pixels of masks are read as ignored pixels",)


# Alpha


HIDDEN = np.where(STEM == 0, np.uint8(0), np.uint8(255))
WHITE = TABLE.copy()
WHITE[0] = 255


def test_unpainted_ground_is_the_first_class(labels_of, tmp_path):
    found = labels_of(COLORS, rgba(STEM, HIDDEN, WHITE), rgba(STEM, HIDDEN, TABLE), rgba(EMPTY, EMPTY, WHITE))
    np.testing.assert_array_equal(found, [STEM, STEM, EMPTY])
    notes = check("folder", source=tmp_path / "own").notes
    assert notes == ("transparent pixels of masks are read as background, the first class",)


def test_unpainted_ground_is_ignored_where_the_first_class_is_painted(labels_of, tmp_path):
    opaque = HIDDEN.copy()
    opaque[:, 6:] = 255
    found = labels_of(COLORS, rgba(STEM, opaque))
    np.testing.assert_array_equal(found, [np.where(opaque, STEM, 255)])
    assert check("folder", source=tmp_path / "own").notes == ("transparent pixels of masks are read as ignored pixels",)


def test_gray_masks_with_alpha(labels_of):
    mask = Image.fromarray(np.dstack([np.where(STEM, STEM, 77).astype(np.uint8), HIDDEN]))
    assert mask.mode == "LA"
    np.testing.assert_array_equal(labels_of(NAMES, mask), [STEM])


def test_masks_without_a_visible_pixel_are_refused(assert_refused):
    assert_refused("all masks are transparent everywhere", COLORS, rgba(STEM, EMPTY), rgba(LEAF, EMPTY))


# Ignored everywhere


def test_masks_that_are_ignored_everywhere(tmp_path, caplog):
    ignored = gray(np.full((8, 8), 255, np.uint8))
    root = make(tmp_path / "own", "__ignore__\nbackground\nleaf\n", ignored, ignored)
    with pytest.raises(UserError, match=r"every pixel of every mask of folder is ignored \(255\)"):
        prepare("folder", source=root, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "folder").exists()
    gray(LEAF).save(root / "masks" / "p0.png")
    prepare("folder", source=root, data_dir=tmp_path / "data")
    assert "every pixel of split test of folder is ignored (255)" in caplog.text
    config = base_config()
    config.data.update({"name": "folder", "data_dir": str(tmp_path / "data")})
    assert len(data.open_split(config, "train")) == len(data.open_split(config, "train+test")) - 1 == 2
    with pytest.raises(
        UserError, match=r"every pixel of folder/test is ignored \(255\), so there is nothing to train on"
    ):
        data.open_split(config, "test")
    report = check("folder", data_dir=tmp_path / "data")
    assert report.splits["test"].problems == [
        "every pixel is ignored (255); the split cannot be trained on or evaluated"
    ]
