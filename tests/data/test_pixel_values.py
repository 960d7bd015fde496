"""Values of more than 8 bits become 8 bits by a fixed range, or the image is refused with the range that was found."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from deeplab_jax import data
from deeplab_jax.data import images
from deeplab_jax.data.check import check
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from tests.conftest import make_folder

RAMP = np.linspace(0, 1, 64 * 4).reshape(4, 64)
EXPECTED = np.rint(RAMP * 255)


def gray(values):
    return np.stack([values] * 3, -1)


def save(path, values, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    Image.fromarray(values).save(path, **({"tiffinfo": info} if tags else {}))
    return path


def save_colors(path, values):
    """Saves 16 bits per color, which Pillow cannot."""
    order = [2, 1, 0, 3][: values.shape[2]]
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(values[..., order]))[1].tobytes())
    return path


def write_tiff(path, values, **tags):
    """Writes an uncompressed TIFF of any number of bands. Tags are given as `t262=2`."""
    height, width, bands = values.shape
    bits, data = 8 * values.dtype.itemsize, values.astype(values.dtype.newbyteorder("<")).tobytes()
    fields = {256: width, 257: height, 258: [bits] * bands, 259: 1, 262: 2, 273: 0, 277: bands, 278: height}
    fields |= {279: len(data)} | {int(tag[1:]): value for tag, value in tags.items()}
    start = 8 + 2 + 12 * len(fields) + 4
    lists, entries = b"", b""
    fields[273] = start + 2 * bands
    for tag, value in sorted(fields.items()):
        if isinstance(value, list):
            entries += struct.pack("<HHII", tag, 3, len(value), start + len(lists))
            lists += struct.pack(f"<{len(value)}H", *value)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + lists + data)
    return path


def add_exif(path, exif):
    """Adds EXIF to a PNG."""
    content, chunk = path.read_bytes(), b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])  # after the signature and IHDR


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_65535_whatever_an_image_contains(tmp_path, suffix, channels):
    path = tmp_path / f"a.{suffix}"
    for brightest in (1.0, 0.5):
        values = np.rint(RAMP * brightest * 65535).astype(np.uint16)
        if channels == 1:
            save(path, values)
        else:
            save_colors(path, gray(values))
        expected = gray(np.rint(values / 257))
        np.testing.assert_array_equal(images.read_image(path), expected)
        np.testing.assert_array_equal(images.decode_image(images.encode_image(path)[0], "a"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_16_are_refused_unless_the_range_is_given(tmp_path, suffix, channels, bits):
    path, largest = tmp_path / f"a.{suffix}", 2**bits - 1
    values = np.rint(RAMP * largest).astype(np.uint16)
    if channels == 1:
        save(path, values)
    else:
        save_colors(path, gray(values))
    message = (
        rf"a\.{suffix} has integer values from 0 to {largest}, which would be nearly black in the range 0 to 65535; .*"
        rf"--value-range=0,{largest}$"
    )
    for read in (images.read_image, images.encode_image):
        with pytest.raises(UserError, match=message):
            read(path)
    expected = gray(np.rint(values / largest * 255))
    np.testing.assert_array_equal(images.read_image(path, value_range=(0, largest)), expected)


def test_16_bits_per_color_count_twice(tmp_path):
    path = save_colors(tmp_path / "a.png", gray(np.rint(RAMP * 65535).astype(np.uint16)))
    message = "64 x 4 pixels of 16 bits per color, which count twice, more than 0.000511 million; scale it down"
    with pytest.raises(UserError, match=message):
        images.read_image(path, max_pixels=511)
    assert images.read_image(path, max_pixels=512).shape == (4, 64, 3)


def test_a_given_range_clips(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 100, 150, 200, 65535]], np.uint16))
    np.testing.assert_array_equal(images.read_image(path, value_range=(100, 200))[0, :, 0], [0, 0, 128, 255, 255])
    np.testing.assert_array_equal(images.read_image(path, value_range=(-100, 155))[0, :, 0], [100, 200, 250, 255, 255])
    np.testing.assert_array_equal(images.read_image(path, value_range=(0, 2**32 - 1))[0, :, 0], [0] * 5)
    encoded, _ = images.encode_image(path, value_range=(100, 200))
    np.testing.assert_array_equal(images.decode_image(encoded, "a")[0, :, 0], [0, 0, 128, 255, 255])


def test_the_range_does_not_apply_to_8_bits(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 100, 255]], np.uint8))
    np.testing.assert_array_equal(images.read_image(path, value_range=(0, 4095))[0, :, 0], [0, 100, 255])


def test_a_black_image_of_16_bits_is_black(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 5), np.uint16))
    assert not images.read_image(path).any()


def test_floats_are_0_to_1(tmp_path):
    path = save(tmp_path / "a.tif", RAMP.astype(np.float32))
    np.testing.assert_array_equal(images.read_image(path), gray(EXPECTED))


@pytest.mark.parametrize(
    ("low", "high", "problem", "suggested"),
    [
        (0, 255, "but the range of this kind of file is 0 to 1", "0,255"),
        (0, 2.5, "but the range of this kind of file is 0 to 1", "0,255"),
        (-0.2, 1, "but the range of this kind of file is 0 to 1", "-0.2,1"),
        (-1024, 3071, "but the range of this kind of file is 0 to 1", "-1024,3071"),
        (0, 0.125, "which would be nearly black", "0,0.25"),
    ],
)
def test_other_floats_are_refused_with_their_range(tmp_path, low, high, problem, suggested):
    values = (low + RAMP * (high - low)).astype(np.float32)
    path = save(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match=rf"a\.tif has float values from {low:g} to {high:g}, {problem}.*={suggested}$"):
        images.read_image(path)
    np.testing.assert_allclose(images.read_image(path, value_range=(low, high))[..., 0], EXPECTED, atol=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path, value):
    values = RAMP.astype(np.float32)
    values[2, 3] = value
    path = save(tmp_path / "a.tif", values)
    for given in (None, (0, 1)):
        with pytest.raises(UserError, match=r"a\.tif contains NaN or infinite values"):
            images.read_image(path, value_range=given)


def test_signed_and_32_bit_integers_need_a_range(tmp_path):
    values = np.rint(RAMP * 4000 - 1000).astype(np.int32)
    signed = save(tmp_path / "signed.tif", values)
    with pytest.raises(UserError, match=r"integer values from -1000 to 3000, of which .* --value-range=-1000,3000$"):
        images.read_image(signed)
    np.testing.assert_allclose(images.read_image(signed, value_range=(-1000, 3000))[..., 0], EXPECTED, atol=1)


def test_white_is_zero_is_inverted(tmp_path):
    path = save(tmp_path / "a.tif", np.rint(RAMP * 65535).astype(np.uint16), t262=0)
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    np.testing.assert_array_equal(images.read_image(path), gray(255 - EXPECTED))


def test_16_bit_transparency_is_drawn_on_white(tmp_path):
    values = np.rint(np.stack([RAMP] * 4, -1) * 65535).astype(np.uint16)
    values[..., 3] = np.where(RAMP > 0.5, 65535, 0)
    path = save_colors(tmp_path / "a.png", values)
    np.testing.assert_array_equal(images.read_image(path), gray(np.where(RAMP > 0.5, EXPECTED, 255)))


UPRIGHT = {1: lambda x: x, 3: lambda x: x[::-1, ::-1], 5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1)}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_are_turned_upright(tmp_path, suffix, channels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path, values = tmp_path / f"a.{suffix}", np.rint(RAMP * 65535).astype(np.uint16)
    if channels == 1:
        Image.fromarray(values).save(path, exif=exif)
    elif suffix == "png":
        add_exif(save_colors(path, gray(values)), exif)
    else:
        write_tiff(path, gray(values), t274=orientation)
    np.testing.assert_array_equal(images.read_image(path), gray(UPRIGHT[orientation](EXPECTED)))


@pytest.mark.parametrize("bands", [4, 5])
def test_further_16_bit_bands_are_not_used(tmp_path, bands):
    values = np.dstack([np.rint(RAMP * 65535).astype(np.uint16)] * bands)
    values[..., 3:] = 1234
    path = write_tiff(tmp_path / "a.tif", values, t338=[0] * (bands - 3) if bands > 4 else 0)
    if bands == 4:
        np.testing.assert_array_equal(images.read_image(path), gray(EXPECTED))
    else:
        with pytest.raises(UserError, match=r"a.tif (cannot be read|has 5 bands)"):  # Pillow does not know this layout
            images.read_image(path)


def test_a_fourth_16_bit_band_that_is_not_transparency_is_refused(tmp_path):
    values = np.dstack([np.rint(RAMP * 65535).astype(np.uint16)] * 4)
    path = write_tiff(tmp_path / "a.tif", values, t338=2)
    with pytest.raises(UserError, match=r"a.tif has a fourth band with values from 0 to 255"):
        images.read_image(path)


def test_signed_bytes_need_a_range(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 100, 127, 128, 255]], np.uint8), t339=2)
    with pytest.raises(UserError, match="integer values from -128 to 127, of which"):
        images.read_image(path)
    np.testing.assert_array_equal(images.read_image(path, value_range=(-128, 127))[0, :, 0], [128, 228, 255, 0, 127])


BANDS = np.dstack([np.full((8, 8), value, np.uint8) for value in (10, 40, 90)])


@pytest.mark.parametrize("extra", [None, 1, 2])
def test_a_fourth_band_that_is_not_transparency_is_refused(tmp_path, extra):
    infrared = np.arange(64, dtype=np.uint8).reshape(8, 8) + 100
    tags = {} if extra is None else {"t338": extra}
    path = save(tmp_path / "a.tif", np.dstack([BANDS, infrared]), **tags)
    with pytest.raises(UserError, match=r"a\.tif has a fourth band with values from 100 to 163, for example infrared"):
        images.read_image(path)


def test_an_undeclared_extra_band_is_not_used(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.dstack([BANDS, np.full((8, 8), 77, np.uint8)]), t338=0)
    np.testing.assert_array_equal(images.read_image(path), BANDS)


def test_the_validity_mask_of_a_tiff_is_transparency(tmp_path):
    valid = np.zeros((8, 8), np.uint8)
    valid[2:] = 255
    path = save(tmp_path / "a.tif", np.dstack([BANDS, valid]))
    np.testing.assert_array_equal(images.read_image(path), np.where(valid[..., None] > 0, BANDS, 255))


def test_a_completely_transparent_image_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.dstack([BANDS, np.zeros((8, 8), np.uint8)]))
    with pytest.raises(UserError, match=r"a\.png is completely transparent; remove its alpha channel"):
        images.read_image(path)


def test_pil_images_follow_the_same_rules(tmp_path):
    full = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    np.testing.assert_array_equal(images.as_image(full, "the image"), gray(EXPECTED))
    with pytest.raises(UserError, match="--value-range=0,4095$"):
        images.as_image(Image.fromarray(np.rint(RAMP * 4095).astype(np.uint16)), "the image")
    path = save_colors(tmp_path / "a.tif", gray(np.rint(RAMP * 65535).astype(np.uint16)))
    with Image.open(path) as image:
        np.testing.assert_array_equal(images.as_image(image, "the image"), gray(EXPECTED))
        image.load()
        with pytest.raises(UserError, match="16 bits per color, of which Pillow has kept 8; pass its path instead"):
            images.as_image(image, "the image")


def test_a_data_set_is_prepared_and_checked_with_one_range(tmp_path):
    source = make_folder(tmp_path / "photos", count=2)
    for path in sorted((source / "images").iterdir()):
        pixels = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        path.unlink()
        Image.fromarray(pixels * 16).save(path.with_suffix(".png"))
    with pytest.raises(UserError, match=r"field_\d+\.png has integer values from .*--value-range=0,4095$"):
        prepare("folder", source=source, data_dir=tmp_path / "data")
    assert not check("folder", source=source).ok
    assert check("folder", source=source, value_range=(0, 4080)).ok
    prepare("folder", source=source, data_dir=tmp_path / "data", value_range=(0, 4080))
    example = data.open_source("folder", "train", data_dir=tmp_path / "data")[0]
    stored = images.decode_image(example["image"], example["id"])
    expected = np.asarray(Image.open(source / "images" / f"{example['id']}.png")) / 16
    np.testing.assert_array_equal(stored, gray(expected))
