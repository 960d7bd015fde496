"""Mask files are read as they are stored: upright, without stretching or rounding, and without lossy compression."""

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from deeplab_jax.data import masks
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_COLOR, VOC, LabelSet
from tests.conftest import scene, write_index_png

LABEL = scene(3, height=24, width=40)[1]
EVERY_LABEL = np.array([*range(21), 255], np.uint8).reshape(2, 11)
FEW = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def write_png(path, values, bits, color_type=0):
    """A PNG of fewer than 8 bits per pixel, which Pillow does not write for gray."""
    import struct
    import zlib

    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, color_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_palette_and_gray_masks_contain_ids(tmp_path):
    write_index_png(tmp_path / "palette.png", EVERY_LABEL)
    save(tmp_path / "gray.png", Image.fromarray(EVERY_LABEL))
    save(tmp_path / "gray16.png", Image.fromarray(EVERY_LABEL.astype(np.uint16)))
    for name in ("palette", "gray", "gray16"):
        ids = masks.read_mask(tmp_path / f"{name}.png", VOC)
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, EVERY_LABEL)


def test_colors_of_rgb_masks_are_looked_up(tmp_path):
    colors = VOC.color_table()[EVERY_LABEL]
    save(tmp_path / "rgb.png", Image.fromarray(colors))
    save(tmp_path / "rgba.png", Image.fromarray(np.dstack([colors, np.full(EVERY_LABEL.shape, 255, np.uint8)])))
    for name in ("rgb", "rgba"):
        np.testing.assert_array_equal(masks.read_mask(tmp_path / f"{name}.png", VOC), EVERY_LABEL)


def test_gray_values_are_colors_where_the_classes_have_colors(tmp_path):
    label_set = LabelSet(("ground", "crop"), ((0, 0, 0), (255, 255, 255)))
    mask = np.array([[0, 255], [255, 0]], np.uint8)
    save(tmp_path / "gray.png", Image.fromarray(mask))
    save(tmp_path / "bits.png", Image.fromarray(mask > 0))
    for name in ("gray", "bits"):
        ids = masks.read_mask(tmp_path / f"{name}.png", label_set, by_color=True)
        np.testing.assert_array_equal(ids, mask // 255)


def test_an_unknown_color_is_named(tmp_path):
    colors = VOC.color_table()[EVERY_LABEL]
    colors[1, 3] = (1, 2, 3)
    path = save(tmp_path / "rgb.png", Image.fromarray(colors))
    with pytest.raises(UserError, match=r"rgb\.png contains color \(1, 2, 3\), which is not assigned to any class"):
        masks.read_mask(path, VOC)


def test_the_ignore_color_becomes_the_ignore_label(tmp_path):
    path = save(tmp_path / "ignored.png", Image.fromarray(np.full((2, 2, 3), IGNORE_COLOR, np.uint8)))
    np.testing.assert_array_equal(masks.read_mask(path, VOC), np.full((2, 2), 255))


@pytest.mark.parametrize("wrong", [21, 77, 254])
def test_a_label_that_is_not_a_class_is_named(tmp_path, wrong):
    label = LABEL.copy()
    label[5, 5] = wrong
    write_index_png(tmp_path / "mask.png", label)
    with pytest.raises(UserError, match=rf"mask\.png contains label {wrong}; labels must be below 21"):
        masks.read_mask(tmp_path / "mask.png", VOC)


def test_a_16_bit_label_does_not_wrap_around(tmp_path):
    path = save(tmp_path / "mask.png", Image.fromarray(np.full((2, 2), 256 + 7, np.uint16)))
    with pytest.raises(UserError, match="contains label 263"):
        masks.read_mask(path, VOC)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_gray_masks_of_any_bit_depth_contain_ids(tmp_path, bits):
    path = tmp_path / "mask.png"
    write_png(path, FEW, bits) if bits < 16 else save(path, Image.fromarray(FEW.astype(np.uint16)))
    np.testing.assert_array_equal(masks.read_mask(path, VOC), FEW)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_masks_contain_ids(tmp_path, dtype, photometric):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = photometric
    path = save(tmp_path / "mask.tif", Image.fromarray(FEW.astype(dtype)), tiffinfo=tags)
    if dtype == np.uint8 and photometric == 0:  # Pillow writes inverted values for this tag
        np.testing.assert_array_equal(masks.load_mask(path).values, 255 - FEW)
    else:
        np.testing.assert_array_equal(masks.read_mask(path, VOC), FEW)


def test_fractions_are_not_ids(tmp_path):
    path = save(tmp_path / "mask.tif", Image.fromarray(FEW.astype(np.float32) / 2))
    with pytest.raises(UserError, match=r"mask\.tif contains fractions; save it as a gray or palette PNG"):
        masks.read_mask(path, VOC)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bits_per_color_are_refused(tmp_path, channels):
    """Pillow keeps the upper 8 bits, which are 0 for every id."""
    path = tmp_path / "mask.png"
    path.write_bytes(cv2.imencode(".png", np.dstack([FEW.astype(np.uint16)] * channels))[1].tobytes())
    with pytest.raises(UserError, match=r"mask\.png has 16 bits per channel; save it as a gray or palette PNG"):
        masks.read_mask(path, VOC)


TURNED = {3: FEW[::-1, ::-1], 6: np.rot90(FEW, -1), 8: np.rot90(FEW, 1)}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["gray.png", "palette.png", "gray.tif", "rgb.png"])
def test_masks_are_turned_like_images(tmp_path, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(FEW)
    if kind.startswith("palette"):
        image.putpalette(VOC.color_table().tobytes())
    elif kind.startswith("rgb"):
        image = Image.fromarray(VOC.color_table()[FEW])
    options = {"compression": "tiff_lzw"} if kind.endswith(".tif") else {}
    path = save(tmp_path / kind, image, exif=exif, **options)
    np.testing.assert_array_equal(masks.read_mask(path, VOC), TURNED[orientation])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mask.jpg", {}, "is a JPEG, whose compression changes labels; save masks as PNG"),
        ("mask.png", {"format": "JPEG"}, "is a JPEG"),  # renamed
        ("mask.webp", {"quality": 90}, "is a lossy WebP"),
        ("mask.webp", {"quality": 90, "exif": Image.Exif()}, "is a lossy WebP"),
        ("mask.tif", {"compression": "jpeg"}, "is a TIFF with JPEG compression"),
    ],
)
def test_lossy_compression_is_refused(tmp_path, name, options, message):
    path = save(tmp_path / name, Image.fromarray(VOC.color_table()[LABEL]), **options)
    with pytest.raises(UserError, match=rf"mask .*{name} {message}"):
        masks.read_mask(path, VOC)


def test_lossless_webp_is_exact(tmp_path):
    path = save(tmp_path / "mask.webp", Image.fromarray(VOC.color_table()[LABEL]), lossless=True)
    np.testing.assert_array_equal(masks.read_mask(path, VOC), LABEL)


def test_labels_in_the_alpha_channel_are_refused(tmp_path):
    path = save(tmp_path / "mask.png", Image.fromarray(np.dstack([np.zeros_like(FEW)] * 3 + [FEW])))
    with pytest.raises(UserError, match=r"mask\.png has one color, and an alpha channel of values from 0 to 3"):
        masks.read_mask(path, VOC)


def test_a_mask_of_another_mode_is_named(tmp_path):
    path = save(tmp_path / "mask.tif", Image.fromarray(np.zeros((2, 2, 4), np.uint8), mode="CMYK"))
    with pytest.raises(UserError, match=r"mask\.tif has mode CMYK; save it as a gray or palette PNG of class ids"):
        masks.read_mask(path, VOC)
