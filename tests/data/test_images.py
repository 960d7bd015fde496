"""Images of every kind are read upright and as RGB; damaged files are named."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from deeplab_jax.data import image_files, images, masks
from deeplab_jax.errors import UserError
from tests.conftest import scene

IMAGE = scene(3, height=24, width=40)[0]


def save(path, image, **options):
    image.save(path, **options)
    return path


def with_orientation(path, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, Image.fromarray(IMAGE), exif=exif, **options)


# How a viewer turns an image with this EXIF orientation upright.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98, "subsampling": 0}}.get(suffix, {})
    path = with_orientation(tmp_path / f"a.{suffix}", orientation, **options)
    upright = UPRIGHT[orientation](IMAGE)
    # JPEG at quality 98 keeps a smooth image within a few gray levels; the other formats are exact.
    tolerance = 12 if suffix == "jpg" else 0
    np.testing.assert_allclose(images.read_image(path).astype(int), upright.astype(int), atol=tolerance)
    encoded, size = images.encode_image(path)
    assert size == upright.shape[:2]
    assert images.encoded_size(encoded, "a") == size
    np.testing.assert_allclose(images.decode_image(encoded, "a").astype(int), upright.astype(int), atol=tolerance)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_gray_tiffs_are_rotated_too(tmp_path, orientation):
    """Pillow mixes up the rows of these if it maps them into memory."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.tif", Image.fromarray(IMAGE[..., 0]), exif=exif)
    np.testing.assert_array_equal(images.read_image(path), UPRIGHT[orientation](IMAGE[..., [0, 0, 0]]))


def test_an_upright_rgb_image_keeps_its_bytes(tmp_path):
    for path in (
        save(tmp_path / "a.jpg", Image.fromarray(IMAGE), quality=90),
        save(tmp_path / "a.png", Image.fromarray(IMAGE)),
        with_orientation(tmp_path / "b.jpg", 1),
    ):
        encoded, size = images.encode_image(path)
        assert encoded == path.read_bytes()
        assert size == IMAGE.shape[:2]


GRAY = IMAGE[..., 0]


def palette_image():
    return Image.fromarray(IMAGE).quantize(16)


def transparent_palette_image():
    image = Image.fromarray((GRAY > 128).astype(np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 1  # the second color is see-through
    return image


ALPHA = np.where(GRAY > 100, 255, 0).astype(np.uint8)
KINDS = {
    "gray": (lambda: Image.fromarray(GRAY), lambda: np.stack([GRAY] * 3, -1)),
    "16-bit gray": (
        lambda: Image.fromarray(GRAY.astype(np.uint16) * 257),
        lambda: np.stack([GRAY] * 3, -1),
    ),
    "black and white": (
        lambda: Image.fromarray(GRAY > 128),
        lambda: np.stack([np.where(GRAY > 128, 255, 0)] * 3, -1),
    ),
    "palette": (palette_image, lambda: np.asarray(palette_image().convert("RGB"))),
    "RGBA on white": (
        lambda: Image.fromarray(np.dstack([IMAGE, ALPHA])),
        lambda: np.where(ALPHA[..., None] > 0, IMAGE, 255),
    ),
    "gray and alpha on white": (
        lambda: Image.fromarray(np.dstack([GRAY, ALPHA])),
        lambda: np.stack([np.where(ALPHA > 0, GRAY, 255)] * 3, -1),
    ),
    "transparent palette on white": (
        transparent_palette_image,
        lambda: np.where(GRAY[..., None] > 128, [255, 255, 255], [10, 20, 30]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_becomes_rgb(tmp_path, kind):
    make, expected = KINDS[kind]
    path = save(tmp_path / "a.png", make())
    np.testing.assert_array_equal(images.read_image(path), expected())
    np.testing.assert_array_equal(images.decode_image(images.encode_image(path)[0], "a"), expected())


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(IMAGE).convert("CMYK"), quality=98, subsampling=0)
    # Quantization at quality 98 moves a smooth image by a few gray levels; inverted channels would move it by 100s.
    assert np.abs(images.read_image(path).astype(int) - IMAGE).max() < 12
    encoded, _ = images.encode_image(path)
    np.testing.assert_array_equal(images.decode_image(encoded, "a"), images.read_image(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_image_is_named(tmp_path, suffix, kept):
    path = save(tmp_path / f"cut.{suffix}", Image.fromarray(IMAGE))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    for read in (images.read_image, images.encode_image):
        with pytest.raises(UserError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp"])
def test_flipped_bytes_are_reported_or_harmless(tmp_path, suffix):
    """Damage results in an image or in one clear line, never in a decoder's own exception."""
    whole = io.BytesIO()
    Image.fromarray(IMAGE).save(whole, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    path = tmp_path / f"damaged.{suffix}"
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for position in rng.integers(0, min(len(content), 400), 3):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        try:
            images.read_image(path)
        except UserError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_a_missing_image_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jpg does not exist"):
        images.read_image(tmp_path / "none.jpg")
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read"):
        images.read_image(tmp_path)


def test_a_decompression_bomb_is_rejected_before_decoding(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", Image.fromarray(IMAGE))
    pixels = IMAGE[..., 0].size
    with pytest.raises(UserError, match=r"bomb\.png has 40 x 24 pixels, more than 0.000959 million; scale it down$"):
        images.read_image(path, max_pixels=pixels - 1)
    assert images.read_image(path, max_pixels=pixels).shape == IMAGE.shape
    monkeypatch.setattr(images, "MAX_PIXELS", pixels - 1)
    path.write_bytes(path.read_bytes()[:200])
    for read in (images.read_image, images.encode_image):
        with pytest.raises(UserError, match=r"bomb\.png has 40 x 24 pixels, more than .*--max-megapixels$"):
            read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_the_limit_of_pillow_does_not_count(tmp_path, monkeypatch, suffix):
    """Pillow warns above its limit and fails above twice the limit."""
    path = save(tmp_path / f"large.{suffix}", Image.fromarray(IMAGE))
    pixels = IMAGE[..., 0].size
    for limit in (pixels - 1, pixels // 3):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert images.read_image(path).shape == IMAGE.shape
        with pytest.raises(UserError, match="more than .* million"):
            images.read_image(path, max_pixels=pixels // 3)
        assert limit == Image.MAX_IMAGE_PIXELS


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "eps"])
def test_no_program_is_started_for_postscript(tmp_path, monkeypatch, suffix):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(EPS)
    for read in (images.read_image, images.encode_image, masks.load_mask):
        with pytest.raises(UserError, match=rf"a\.{suffix} cannot be read: it is damaged, not an image"):
            read(path)
    assert not started


@pytest.mark.parametrize("other", ["PPM", "TGA", "ICO", "PCX", "JPEG2000"])
def test_other_formats_are_refused_whatever_the_suffix(tmp_path, other):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path, format=other)
    with pytest.raises(UserError, match=r"a\.png cannot be read: .*; convert it to JPEG or PNG$"):
        images.read_image(path)


def test_the_content_decides_the_format(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(IMAGE).save(path, format="PNG")
    np.testing.assert_array_equal(images.read_image(path), IMAGE)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_pages_and_animations_are_refused(tmp_path, suffix):
    path = tmp_path / f"many.{suffix}"
    Image.fromarray(IMAGE).save(path, save_all=True, append_images=[Image.fromarray(255 - IMAGE)])
    for read in (images.read_image, images.encode_image):
        with pytest.raises(UserError, match=rf"many\.{suffix} has several pages or frames"):
            read(path)


def test_smaller_copies_in_a_tiff_are_not_pages(tmp_path):
    small = Image.fromarray(np.ascontiguousarray(IMAGE[::2, ::2]))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy of another page
    path = tmp_path / "pyramid.tif"
    Image.fromarray(IMAGE).save(path, save_all=True, append_images=[small])
    np.testing.assert_array_equal(images.read_image(path), IMAGE)


def test_the_preview_in_a_jpeg_is_not_a_page(tmp_path):
    path = tmp_path / "phone.jpg"
    preview = Image.fromarray(np.ascontiguousarray(IMAGE[::2, ::2]))
    Image.fromarray(IMAGE).save(path, format="MPO", save_all=True, append_images=[preview], quality=98, subsampling=0)
    assert np.abs(images.read_image(path).astype(int) - IMAGE).max() < 12
    assert images.encode_image(path)[1] == IMAGE.shape[:2]


def test_an_image_without_permission_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.fromarray(IMAGE))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match=r"a\.png cannot be read: Permission denied$"):
        images.read_image(path)


def test_stored_bytes_of_another_format_are_damaged():
    in_bmp = cv2.imencode(".bmp", IMAGE)[1].tobytes()
    with pytest.raises(UserError, match="image of field_7 is damaged"):
        images.decode_image(in_bmp, "field_7")
    with pytest.raises(UserError, match="image of field_7 is damaged"):
        images.encoded_size(in_bmp, "field_7")


def test_damaged_stored_bytes_name_the_example():
    with pytest.raises(UserError, match="image of field_7 is damaged"):
        images.decode_image(b"not an image", "field_7")
    with pytest.raises(UserError, match="mask of field_7 is damaged"):
        images.decode_mask(b"not an image", "field_7")
    in_color = cv2.imencode(".png", IMAGE)[1].tobytes()
    with pytest.raises(UserError, match="mask of field_7 is damaged"):
        images.decode_mask(in_color, "field_7")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
def test_labels_of_all_values_survive_encoding(height, width, seed):
    label = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    encoded = images.encode_mask(label)
    np.testing.assert_array_equal(images.decode_mask(encoded, "a"), label)
    assert images.encoded_size(encoded, "a") == (height, width)


def test_stored_masks_are_smaller_than_pngs_with_filters():
    label = scene(3, height=240, width=320)[1]
    default = cv2.imencode(".png", label)[1].tobytes()
    assert len(images.encode_mask(label)) < 0.7 * len(default)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2), np.uint16), np.zeros((2, 2, 3), np.uint8)])
def test_a_stored_mask_of_another_kind_is_damaged(pixels):
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    with pytest.raises(UserError, match="^the stored mask of train_7 is damaged; prepare the data set again$"):
        images.decode_mask(encoded, "train_7")


def test_heic_and_avif_are_read_like_other_formats(tmp_path):
    """HEIC is the format of iPhones. Both are lossy, and store color at half the size."""
    image = scene(3, height=64, width=96)[0]
    for name, package in (("a.heic", "pillow_heif"), ("a.avif", None)):
        if package:
            pytest.importorskip(package, reason="the extra `heic` is not installed")
        elif not features.check("avif"):
            pytest.skip("Pillow was built without AVIF")
        path = save(tmp_path / name, Image.fromarray(image), quality=95)
        assert path.suffix in image_files.IMAGE_SUFFIXES
        found = images.read_image(path)
        assert found.shape == image.shape
        assert np.abs(found.astype(int) - image).mean() < 5
        encoded, size = images.encode_image(path)
        assert size == image.shape[:2]
        np.testing.assert_array_equal(images.decode_image(encoded, "a"), found)
        with pytest.raises(UserError, match=r"96 x 64 pixels, more than 0\.005 million"):
            images.read_image(path, max_pixels=5000)
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
            images.read_image(path)


def test_heic_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(images, "IMAGE_FORMATS", ("JPEG", "PNG"))
    with pytest.raises(
        UserError, match=r"a\.HEIC needs pillow-heif; install it with: pip install 'deeplab_jax\[heic\]'"
    ):
        images.read_image(tmp_path / "a.HEIC")
