"""The demo without a browser: results, limits, threads that share networks, and errors of the command."""

import concurrent.futures
import pathlib
import socket
import sys
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import data, visualization
from deeplab_jax.cli import main
from deeplab_jax.demo import networks as networks_lib
from deeplab_jax.demo import page
from deeplab_jax.errors import UserError
from deeplab_jax.inference.predictor import Prediction, Predictor
from deeplab_jax.labels import SYNTHETIC, LabelSet
from deeplab_jax.pretrained import presets
from tests.conftest import scene

PLENTY = 10**6


class ByBrightness(Predictor):
    """A fake network: the class of a pixel is its brightness."""

    def __init__(self, label_set: LabelSet = SYNTHETIC):
        self.label_set, self.pixels = label_set, data.PixelFormat()

    def __call__(self, image: np.ndarray) -> Prediction:
        label = image.astype(int).sum(-1) * self.label_set.num_classes // 766
        return Prediction(label.astype(np.uint8), self.label_set)


@pytest.fixture
def predictor() -> Predictor:
    return ByBrightness()


@pytest.fixture
def networks(predictor) -> networks_lib.Networks:
    """One network, named `tiny`."""
    return networks_lib.Networks({"tiny": lambda: predictor}, max_pixels=PLENTY)


@pytest.fixture
def photo(tmp_path) -> pathlib.Path:
    """An image with more than one class in it."""
    path = tmp_path / "photo.png"
    Image.fromarray(data.resize_image(scene(3, 40, 56)[0], (46, 65))).save(path)
    return path


def own_labels(predictor: Predictor, path: pathlib.Path) -> np.ndarray:
    return predictor(data.read_image(path)).label_map


# ---- Results ----


def test_labels_and_overlay_are_those_of_the_predictor(trained, photo):
    predictor = Predictor.from_pretrained(trained)
    networks = networks_lib.Networks({"tiny": lambda: predictor}, max_pixels=PLENTY)
    result = networks.segment(photo, "tiny")
    expected = own_labels(predictor, photo)
    assert len(np.unique(expected)) > 1  # else any mix-up would go unnoticed
    assert np.array_equal(result.label_map, expected)
    tinted = visualization.overlay(data.read_image(photo), expected, predictor.label_set)
    assert np.array_equal(result.overlay, tinted)
    assert result.label_set == predictor.label_set


def test_shares_are_fractions_of_the_pixels_largest_first(networks, predictor, photo):
    shares = networks.segment(photo, "tiny").shares
    expected = own_labels(predictor, photo)
    assert {share.class_id: share.fraction for share in shares} == {
        label: np.mean(expected == label) for label in np.unique(expected)
    }
    assert [share.name for share in shares] == [predictor.label_set.class_names[share.class_id] for share in shares]
    fractions = [share.fraction for share in shares]
    assert fractions == sorted(fractions, reverse=True)


def save_kinds(folder: pathlib.Path) -> list[pathlib.Path]:
    rgb = Image.fromarray(data.resize_image(scene(3, 40, 56)[0], (46, 65)))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to display
    rgb.save(folder / "rotated.jpg", exif=exif)
    for mode in ("L", "RGBA", "P"):
        rgb.convert(mode).save(folder / f"{mode}.png")
    return sorted(folder.iterdir())


def test_every_kind_of_image_is_read_as_in_prediction(networks, predictor, tmp_path):
    for path in save_kinds(tmp_path):
        assert np.array_equal(networks.segment(path, "tiny").label_map, own_labels(predictor, path)), path
    assert networks.segment(tmp_path / "rotated.jpg", "tiny").overlay.shape == (65, 46, 3)


# ---- Time ----


def test_loading_and_compiling_are_timed_separately_and_happen_once(trained, photo):
    networks = networks_lib.Networks({"tiny": lambda: Predictor.from_pretrained(trained)}, max_pixels=PLENTY)
    started = time.perf_counter()
    first = networks.segment(photo, "tiny")
    total = time.perf_counter() - started
    second = networks.segment(photo, "tiny")
    assert first.compile_seconds > 0
    assert second.compile_seconds == 0
    assert first.load_seconds > 0.01 > second.load_seconds  # the second time only an attribute is read
    for result in (first, second):
        assert result.predict_seconds > 0
    assert first.load_seconds + first.compile_seconds + first.predict_seconds <= total


# ---- Threads ----


class SlowLoader:
    """A loader that waits for the test and counts its calls."""

    def __init__(self, predictor: Predictor):
        self._predictor, self.calls, self.proceed, self.started = predictor, 0, threading.Event(), threading.Event()

    def __call__(self) -> Predictor:
        self.calls += 1
        self.started.set()
        assert self.proceed.wait(30)
        return self._predictor


def test_two_requests_load_once_and_compile_once(trained, photo):
    load = SlowLoader(Predictor.from_pretrained(trained))
    networks = networks_lib.Networks({"tiny": load}, max_pixels=PLENTY)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [pool.submit(networks.segment, photo, "tiny") for _ in range(2)]
        load.started.wait(30)
        time.sleep(0.2)  # the second request is waiting too
        load.proceed.set()
        results = [future.result(60) for future in both]
    assert load.calls == 1
    assert sorted(result.compile_seconds > 0 for result in results) == [False, True]
    assert np.array_equal(results[0].label_map, results[1].label_map)


def test_a_slow_network_does_not_block_another(predictor, photo):
    load = SlowLoader(predictor)
    networks = networks_lib.Networks({"slow": load, "fast": lambda: predictor}, max_pixels=PLENTY)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        slow = pool.submit(networks.segment, photo, "slow")
        load.started.wait(30)
        fast = pool.submit(networks.segment, photo, "fast").result(60)
        assert not slow.done()
        load.proceed.set()
        assert np.array_equal(slow.result(60).label_map, fast.label_map)


def test_a_failed_load_is_retried(predictor, photo):
    problems = [UserError("it does not exist yet")]

    def load() -> Predictor:
        if problems:
            raise problems.pop()
        return predictor

    networks = networks_lib.Networks({"tiny": load}, max_pixels=PLENTY)
    with pytest.raises(UserError, match="not exist yet"):
        networks.segment(photo, "tiny")
    assert networks.segment(photo, "tiny").label_map.shape == (46, 65)


# ---- Limits and errors ----


def test_an_image_with_too_many_pixels_is_rejected_before_decoding(networks, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 2000)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="truncated"):
        data.read_image(path)  # the error of decoding
    with pytest.raises(UserError, match="large.png has 3000 x 2000 pixels, more than 1 million; scale it down"):
        networks.segment(path, "tiny")


def test_an_image_with_the_maximum_number_of_pixels_is_accepted(predictor, photo):
    networks = networks_lib.Networks({"tiny": lambda: predictor}, max_pixels=46 * 65)
    assert networks.segment(photo, "tiny").label_map.shape == (46, 65)


def test_error_messages_do_not_reveal_the_servers_folders(networks, photo, tmp_path):
    damaged = tmp_path / "<b>me & you.jpg"
    damaged.write_bytes(photo.read_bytes()[:500])
    for image, name, message in (
        (None, "tiny", "Upload an image first."),
        (str(damaged), "tiny", "Image &lt;b&gt;me &amp; you.jpg cannot be read"),
        (str(photo), "tinny", "Network &#x27;tinny&#x27; is not on the menu."),
    ):
        overlay, mask, report = page.respond(networks, tmp_path, image, name)
        assert overlay is None
        assert mask is None
        assert message in report
        assert str(tmp_path) not in report
        assert 'role="alert"' in report


def test_mask_is_a_palette_image_and_legend_is_text(networks, predictor, photo):
    overlay, mask, report = page.respond(networks, photo.parent, str(photo), "tiny")
    expected = own_labels(predictor, photo)
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), expected)
    assert np.array_equal(np.asarray(mask.convert("RGB")), visualization.colorize(expected, predictor.label_set))
    assert overlay.shape == (46, 65, 3)
    assert "65 x 46 pixels segmented in " in report
    for share in visualization.class_shares(expected, predictor.label_set):
        red, green, blue = predictor.label_set.palette[share.class_id]
        assert f'rgb({red}, {green}, {blue})"><span class="name">{share.name}</span>' in report
        assert f'<span class="percent">{share.percent}</span>' in report


def test_class_names_are_escaped_in_html(predictor, photo):
    names = tuple(f"<i>{name}</i>" for name in predictor.label_set.class_names)
    other = ByBrightness(LabelSet(names, predictor.label_set.palette))
    networks = networks_lib.Networks({"tiny": lambda: other}, max_pixels=PLENTY)
    *_, report = page.respond(networks, photo.parent, str(photo), "tiny")
    assert "&lt;i&gt;" in report
    assert "<i>" not in report


# ---- Networks on offer ----


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache for presets, and no mirror."""
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPLAB_JAX_MIRROR", raising=False)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def files_of(*names: str) -> list[str]:
    return [presets.find_preset(name).file for name in names]


def test_local_presets_follow_the_named_networks(cache, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    shipped = set(networks_lib.find_networks([mine]))  # presets that ship with the package
    before = list(networks_lib.find_networks(["deeplabv3_resnet50_coco", mine]))
    assert before[:2] == ["deeplabv3_resnet50_coco", "mine"]
    assert "deeplabv3_mnv2_pascal_quant" not in before
    backbone, quantized, large = files_of(
        "resnet50_imagenet1k_v2", "deeplabv3_mnv2_pascal_quant", "deeplabv3_resnet101_coco"
    )
    (cache / quantized).touch()
    (cache / backbone).touch()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / large).touch()
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", str(mirror))
    found = set(networks_lib.find_networks([mine])) - shipped
    assert found == {"deeplabv3_mnv2_pascal_quant", "deeplabv3_resnet101_coco"}  # a backbone has no classes


def test_folders_with_the_same_name_appear_with_their_path(cache, tmp_path):
    first, second = tmp_path / "a" / "net", tmp_path / "b" / "net"
    assert list(networks_lib.find_networks([first, second]))[:2] == [str(first), str(second)]


def test_a_workdir_is_offered_by_its_name(cache, trained):
    (name, load), *_ = networks_lib.find_networks(workdir=trained).items()
    assert name == trained.name
    assert load().label_set == SYNTHETIC


# ---- The command ----


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs `deeplab-jax demo` with a fake Gradio. Returns its exit code and the lines on stderr."""
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # the command sets them for its process, which is this one

    def run_command(*arguments: object) -> tuple[int, list[str]]:
        with pytest.raises(SystemExit) as done:
            main.main(["demo", *map(str, arguments)])
        return done.value.code, capsys.readouterr().err.splitlines()

    return run_command


def test_without_gradio_the_error_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run() == (1, ["deeplab-jax: the demo needs Gradio; install it with `pip install 'deeplab_jax[demo]'`"])


def test_a_port_in_use_is_reported_in_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, lines = run("--port", port)
    assert code == 1
    assert lines == [
        f"deeplab-jax: cannot serve on --host 127.0.0.1 --port {port}: Address already in use; "
        "choose another port or host"
    ]


def test_a_network_that_cannot_be_loaded_is_reported_before_serving(run, tmp_path):
    code, lines = run("--preset", tmp_path, "--port", 0)
    assert code == 1
    assert len(lines) == 1, lines
    assert str(tmp_path) in lines[0]


def test_a_network_of_other_channels_says_that_the_page_takes_rgb(photo):
    five = ByBrightness()
    five.pixels = data.PixelFormat(5, "uint16", (0, 4095))
    networks = networks_lib.Networks({"fields": lambda: five}, max_pixels=PLENTY)
    with pytest.raises(
        UserError, match="takes 8-bit RGB images, but fields takes 5 channels of uint16 .*deeplab-jax pred"
    ):
        networks.segment(photo, "fields")
