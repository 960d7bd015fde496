"""Images keep their channels and their bit depth; what a data set does not hold in common is named."""

import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data
from deeplab_jax.config import base_config
from deeplab_jax.data import channels, pixel_format
from deeplab_jax.data.channel_statistics import ChannelStatistics
from deeplab_jax.data.pixel_format import PixelFormat
from deeplab_jax.data.pixel_range import complete
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from tests.data.test_images import UPRIGHT
from tests.data.test_pixel_values import save_colors

DEEP = np.random.default_rng(0).integers(0, 2**16, (24, 40, 5), dtype=np.uint16)


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile", reason="the extra `tiff` is not installed")


@pytest.fixture
def imagecodecs(tifffile):
    return pytest.importorskip("imagecodecs", reason="the extra `tiff` is not installed")


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_8_bit_images_have_the_channels_of_their_files(tmp_path, mode, suffix):
    if suffix == "webp" and mode in ("L", "LA"):
        pytest.skip("WebP stores RGB")
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = (DEEP[..., :count] >> 8).astype(np.uint8)
    values[..., count - 1] |= 1  # WebP drops colors where the opacity is 0
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(values[..., 0] if count == 1 else values, mode).save(tmp_path / f"a.{suffix}", **options)
    found = channels.read_channels(tmp_path / f"a.{suffix}", count)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_16_bit_pngs_keep_all_bits(tmp_path, count):
    if count == 1:
        Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.png")
    else:
        save_colors(tmp_path / "a.png", DEEP[..., :count])
    found = channels.read_channels(tmp_path / "a.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, DEEP[..., :count])


def test_palettes_and_cmyk_become_rgb(tmp_path):
    colors = Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8))
    colors.quantize(8).save(tmp_path / "palette.png")
    colors.convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("palette.png", "cmyk.jpg"):
        expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        np.testing.assert_array_equal(channels.read_channels(tmp_path / name, 3), expected)


@pytest.mark.parametrize("layout", ["together", "one by one", "pages", "tiles", "tiles one by one"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_of_tiffs_are_read_however_they_are_stored(tmp_path, tifffile, layout, dtype):
    values = DEEP.astype(dtype)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    if layout.startswith("tiles"):
        options["tile"] = (16, 16)
    if layout.endswith("one by one"):
        options["planarconfig"] = "separate"
    if layout == "pages":
        options = {"photometric": "minisblack"}
    stored = values if options.get("planarconfig") == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    found = channels.read_channels(tmp_path / "a.tif", 5)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    with channels.open_windows(tmp_path / "a.tif") as image:
        assert image.shape == (24, 40, 5)
        for top, left, height, width in (
            (0, 0, 24, 40),
            (5, 17, 12, 9),
            (15, 15, 2, 2),
            (20, 30, 16, 16),
            (30, 0, 4, 4),
        ):
            window = image.read(top, left, height, width)
            np.testing.assert_array_equal(window, values[top : top + height, left : left + width])


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_windows_of_rotated_tiffs_are_windows_of_the_upright_image(tmp_path, tifffile, orientation):
    tifffile.imwrite(
        tmp_path / "a.tif",
        DEEP,
        photometric="minisblack",
        planarconfig="contig",
        tile=(16, 16),
        extratags=[(274, 3, 1, orientation, True)],
    )
    upright = UPRIGHT[orientation](DEEP)
    with channels.open_windows(tmp_path / "a.tif") as image:
        assert image.shape == upright.shape
        np.testing.assert_array_equal(image.read(), upright)
        np.testing.assert_array_equal(image.read(3, 7, 10, 12), upright[3:13, 7:19])


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", "lzma"])
def test_lossless_compression_is_read_with_imagecodecs(tmp_path, imagecodecs, tifffile, compression, monkeypatch):
    options = {"photometric": "minisblack", "planarconfig": "contig", "compression": compression}
    if compression in ("lzw", "zlib"):
        options["predictor"] = True
    tifffile.imwrite(tmp_path / "a.tif", DEEP, **options)
    np.testing.assert_array_equal(channels.read_channels(tmp_path / "a.tif"), DEEP)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"a\.tif is compressed; install imagecodecs with: pip install 'deeplab_jax\[tiff\]'"
    ):
        channels.read_channels(tmp_path / "a.tif")


def test_a_deflated_tile_cannot_expand_beyond_its_size(tmp_path, imagecodecs, tifffile):
    """A small file could otherwise fill the memory: its header announces a tile of 512 bytes, its data are 64 MB."""
    path = tmp_path / "bomb.tif"
    values = np.zeros((16, 16), np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", tile=(16, 16), compression="zlib")
    bomb = zlib.compress(bytes(64 << 20))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        position, (count_at, offset_at) = path.stat().st_size, (page.tags[number].valueoffset for number in (325, 324))
    content = bytearray(path.read_bytes() + bomb)
    content[count_at : count_at + 4] = len(bomb).to_bytes(4, "little")
    content[offset_at : offset_at + 4] = position.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bomb\.tif cannot be read: .* it is truncated or damaged"):
        channels.read_channels(path)


def test_a_header_that_announces_gigabytes_is_refused_before_anything_is_allocated(tmp_path, tifffile):
    path = tmp_path / "huge.tif"
    tifffile.imwrite(path, DEEP, photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(path) as file:
        offsets = [file.pages[0].tags[number].valueoffset for number in (256, 257)]
    content = bytearray(path.read_bytes())
    for offset in offsets:
        content[offset : offset + 4] = (60_000).to_bytes(4, "little")
    path.write_bytes(content)
    message = (
        r"60000 x 60000 pixels of 10 bytes, which count 2\.5 times, more than 268\.435 million; .*--max-megapixels"
    )
    with pytest.raises(UserError, match=message):
        channels.read_channels(path)


def test_values_that_no_network_can_use_are_refused(tmp_path, tifffile):
    values = DEEP.astype(np.float32)
    values[3, 4, 2] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"nan\.tif contains NaN or infinite values; replace them"):
        channels.read_channels(tmp_path / "nan.tif")
    tifffile.imwrite(tmp_path / "complex.tif", values.astype(np.complex64), photometric="minisblack")
    with pytest.raises(UserError, match="values of a rare kind"):
        channels.read_channels(tmp_path / "complex.tif")


def test_signed_and_wide_integers_become_float32(tmp_path, tifffile):
    values = DEEP.astype(np.int32) - 2**15
    tifffile.imwrite(tmp_path / "a.tif", values.astype(np.int16), photometric="minisblack", planarconfig="contig")
    found = channels.read_channels(tmp_path / "a.tif")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


def test_the_wrong_number_of_channels_and_files_that_are_no_images_are_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 3 channels; 5 are expected, the same in all images"):
        channels.read_channels(tmp_path / "a.png", 5)
    with pytest.raises(UserError, match=r"b\.png does not exist"):
        channels.read_channels(tmp_path / "b.png", 5)


def test_without_tifffile_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(20))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"needs tifffile; install it with: pip install 'deeplab_jax\[tiff\]'"):
        channels.read_channels(tmp_path / "a.tif")


# The rule of a data set


def test_statistics_of_parts_are_those_of_the_whole():
    parts = [DEEP[:10], DEEP[10:, :7], DEEP[10:, 7:]]
    merged = ChannelStatistics.merge(map(ChannelStatistics.of, parts))
    flat = DEEP.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(merged.mean, flat.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.std, flat.std(axis=0), rtol=1e-9)  # a difference of squares
    assert merged.low == tuple(flat.min(axis=0))
    assert merged.high == tuple(flat.max(axis=0))
    assert ChannelStatistics.from_json(merged.to_json()) == merged


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [
        ("uint8", 3, 90, (0, 255)),
        ("uint16", 0, 1000, (0, 1023)),
        ("uint16", 7, 3001, (0, 4095)),
        ("float32", 0.0, 0.7, (0, 1)),
        ("float32", -20.5, 40.0, (-20.5, 40.0)),
        ("float32", 0.0, 0.0, (0, 1)),
    ],
)
def test_the_range_is_the_smallest_usual_one_that_holds_all_values(dtype, low, high, expected):
    low, high = float(low), float(high)
    statistics = {
        "train": ChannelStatistics(2, (low,), (low,), (2 * low,), (2 * low**2,)),
        "val": ChannelStatistics(1, (high,), (high,), (high,), (high**2,)),
    }
    found = complete(PixelFormat(1, dtype), statistics)
    assert found.value_range == expected
    assert found.mean == (low,)  # of the training split alone
    assert complete(PixelFormat(1, dtype), statistics, (0, 9)).value_range == (0, 9)
    assert PixelFormat.from_json(found.to_json()) == found


def test_drawing_chooses_three_channels():
    image = np.array([[[0, 1000, 2000, 3000, 4000]]], np.uint16)
    assert pixel_format.to_rgb(image, (0, 4000)).tolist() == [[[0, 64, 128]]]
    assert pixel_format.to_rgb(image, (0, 4000), (3, 2, 1)).tolist() == [[[191, 128, 64]]]
    assert pixel_format.to_rgb(image[..., 1:2], (0, 4000)).tolist() == [[[64, 64, 64]]]
    with pytest.raises(UserError, match=r"data\.display_channels=\(5, 1, 0\) must be three channels of 0 to 4"):
        pixel_format.to_rgb(image, (0, 4000), (5, 1, 0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.uint16), r"has the shape \(4, 4, 3\), but the network takes \(height, width, 5\)"),
        (np.zeros((4, 4, 5), np.uint8), "has 8 bits per channel, but the network takes values from 0 to 4095"),
        (np.full((4, 4, 5), 40_000, np.uint16), "has values up to 40000, but the network takes values from 0 to 4095"),
    ],
)
def test_images_of_another_kind_than_the_network_was_trained_on_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        pixel_format.check_image(image, "the image", PixelFormat(5, "uint16", (0, 4095)))


def test_a_dark_scene_is_not_refused():
    pixel_format.check_image(np.ones((4, 4, 5), np.uint16), "a night", PixelFormat(5, "uint16", (0, 4095)))


def test_a_gray_data_set_of_16_bits_reaches_training_and_evaluation_as_it_is(tmp_path):
    """Without tifffile: PNGs have 16 bits too."""
    root = tmp_path / "gray"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    images = {}
    for i in range(4):
        images[f"a{i}"] = np.random.default_rng(i).integers(0, 1000, (24, 40), dtype=np.uint16)
        Image.fromarray(images[f"a{i}"]).save(root / "images" / f"a{i}.png")
        Image.fromarray((images[f"a{i}"] > 500).astype(np.uint8)).save(root / "masks" / f"a{i}.png")
    (root / "classes.txt").write_text("dark\nbright\n")
    prepare("folder", source=root, data_dir=tmp_path / "data", channels=1)
    config = base_config()
    config.data.name, config.data.data_dir = "folder", str(tmp_path / "data")
    config.data.batch_size, config.data.image_size, config.data.resize = 2, (32, 48), "scale_crop"
    config.data.scale_range = (1.0, 1.0)
    source = data.open_split(config, "train")
    data.fit_model(config.model, source.pixels, "folder")
    color = data.pad_color(config.model)
    assert color == (round(source.pixels.mean[0]),)
    batch = next(data.train_batches(source, config.data, seed=0, pad_color=color))
    assert batch["image"].dtype == np.uint16
    assert batch["image"].shape == (2, 32, 48, 1)
    found, mirrored = (images[batch["id"][0]][:, ::step] for step in (1, -1))
    assert any(np.array_equal(batch["image"][0, :24, :40, 0], image) for image in (found, mirrored))
    assert (batch["image"][0, 24:, 40:] == color).all()
    val = data.open_split(config, "val")
    (scored,) = data.eval_batches(val, data.protocol_for(config), batch_size=2)
    assert scored["image"].dtype == np.uint16
    assert scored["image"].shape[3] == 1
    np.testing.assert_array_equal(scored["image"][0, :24, :40, 0], images[scored["id"][0]])


def test_channels_to_draw_are_checked_before_any_image_is_drawn():
    config = base_config().data
    for drawn in ((), (4, 0, 2)):
        config.display_channels = drawn
        data.check_display(config, PixelFormat(channels=5))
    for drawn in ((0,), (0, 1, 5)):
        config.display_channels = drawn
        with pytest.raises(UserError, match="must be three channels of 0 to 4"):
            data.check_display(config, PixelFormat(channels=5))


@pytest.mark.parametrize(
    ("field", "value", "off"), [("color_jitter", 0.2, "0.0"), ("photometric_distortion", True, "False")]
)
def test_transforms_of_colors_need_8_bit_rgb(field, value, off):
    config = base_config()
    config.data[field] = value
    data.check_augmentation(config, PixelFormat(), "folder")
    for pixels in (PixelFormat(channels=4), PixelFormat(dtype="uint16", value_range=(0, 65535))):
        with pytest.raises(UserError) as caught:
            data.check_augmentation(config, pixels, "folder")
        assert str(caught.value).startswith(f"data.{field}={value} changes the colors of 8-bit RGB, but folder has")
        assert str(caught.value).endswith(f"set --config.data.{field}={off}")
        data.check_augmentation(base_config(), pixels, "folder")
