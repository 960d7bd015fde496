"""The demo page in headless Chromium: upload, segment, compare; limits; two visitors; no other servers."""

import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data, visualization
from deeplab_jax.inference.predictor import Predictor
from tests.conftest import scene

pytest.importorskip("gradio", reason="needs the extra demo")
pytest.importorskip("selenium", reason="needs selenium")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

from tests.support.demo_browser import Page  # noqa: E402
from tests.support.demo_server import serving  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(trained):
    with serving("--workdir", str(trained), "--max-megabytes", "1", "--max-megapixels", "1") as url:
        yield url


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.from_pretrained(trained)


def make_photo(path: pathlib.Path, height: int, width: int, seed: int = 3) -> pathlib.Path:
    Image.fromarray(data.resize_image(scene(seed, 40, 56)[0], (height, width))).save(path)
    return path


def check(page: Page, path: pathlib.Path, predictor: Predictor) -> None:
    """Compares every pixel with the predictor's own result: the page serves PNG."""
    image = data.read_image(path)
    expected = predictor(image).label_map
    tinted = visualization.overlay(image, expected, predictor.label_set)
    assert np.array_equal(np.asarray(page.pixels("overlay")), tinted)
    mask = page.pixels("mask")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected)
    legend = page.wait("#report .legend").split("\n")
    shares = visualization.class_shares(expected, predictor.label_set)
    assert legend == [text for share in shares for text in (share.name, share.percent)]


def test_an_uploaded_image_is_segmented_and_no_other_server_is_contacted(address, predictor, tmp_path):
    path = make_photo(tmp_path / "photo.png", 150, 201)
    with Page(address) as page:
        report = page.segment(path)
        assert "201 x 150 pixels segmented in" in report
        check(page, path, predictor)
        requested = page.requests()
        messages = page.console_messages()
    local = urllib.parse.urlsplit(address).netloc
    assert len([url for url in requested if urllib.parse.urlsplit(url).netloc == local]) > 10
    remote = [url for url in requested if not url.startswith(("data:", "blob:", "chrome://", "chrome-untrusted://"))]
    assert {urllib.parse.urlsplit(url).netloc for url in remote} == {local}
    assert not [line for line in messages if "Content Security Policy" in line or "Failed to load" in line]


def test_exif_orientation_is_applied(address, predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(3, 90, 120)[0]).save(tmp_path / "portrait.jpg", exif=exif)
    with Page(address) as page:
        assert "90 x 120 pixels segmented in" in page.segment(tmp_path / "portrait.jpg")
        check(page, tmp_path / "portrait.jpg", predictor)


def test_a_real_photo_is_segmented(address, predictor, shared):
    path = min((shared / "data" / "voc_subset").rglob("*.jpg"))
    with Page(address) as page:
        page.segment(path)
        check(page, path, predictor)


def test_two_visitors_at_once_get_their_own_results(address, predictor, tmp_path):
    paths = [make_photo(tmp_path / "a.png", 110, 140), make_photo(tmp_path / "b.png", 140, 110, seed=8)]
    with Page(address) as first, Page(address) as second:
        pages = (first, second)
        for page, path in zip(pages, paths, strict=True):
            page.upload(path)
            page.wait("#image img")
        for page in pages:
            page.click()
        for page, path, size in zip(pages, paths, ("140 x 110", "110 x 140"), strict=True):
            page.wait("#report .time", f"{size} pixels segmented in")
            page.wait("#mask img")
            check(page, path, predictor)


def test_large_and_damaged_images_are_reported_and_the_next_image_works(address, predictor, tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (2000, 1000)).save(wide)  # two million pixels in a few kilobytes
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff no image")
    with Page(address) as page:
        page.click()
        page.wait("#report .problem", "Upload an image first.")
        page.upload(wide)
        page.wait("#image img")
        page.click()
        page.wait("#report .problem", "wide.png has 2000 x 1000 pixels, more than 1 million; scale it down.")
        page.open(address)
        page.upload(damaged)
        page.wait("#image img")
        page.click()
        page.wait("#report .problem", "Image damaged.jpg cannot be read")
        page.open(address)
        photo = make_photo(tmp_path / "photo.png", 110, 140)
        page.segment(photo)
        check(page, photo, predictor)


def test_page_and_server_reject_files_with_too_many_bytes(address, tmp_path):
    heavy = tmp_path / "heavy.png"
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)  # 1.5 MB: noise does not shrink
    Image.fromarray(noise).save(heavy)
    with Page(address) as page:
        page.upload(heavy)
        page.wait(".toast-body", "exceed the maximum allowed size of 1.0 Mb")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + heavy.read_bytes()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", data=body + b"\r\n--x--\r\n", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as error:
        assert error.code == 413
        assert b"maximum allowed size of 1048576 bytes" in error.read()


def test_page_fits_the_width_of_a_phone(address, tmp_path):
    with Page(address, width=390, height=844) as page:
        page.segment(make_photo(tmp_path / "photo.png", 110, 140))
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width == 390
        assert page.driver.execute_script("return document.querySelector('#overlay img').clientWidth") > 250


def test_uploaded_images_are_deleted_when_the_server_stops(trained, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    photo = make_photo(tmp_path / "photo.png", 110, 140)
    with serving("--workdir", str(trained), temporary=folder) as url, Page(url) as page:
        page.upload(photo)
        page.wait("#image img")
        assert list(folder.rglob("photo.png"))
    assert list(folder.iterdir()) == []
