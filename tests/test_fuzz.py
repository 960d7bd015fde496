"""Random and damaged input of every kind gives a result or a one-line error, nothing else."""

import contextlib
import io
import json
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab_jax.cli.config_flags import parse_config
from deeplab_jax.config import base_config, parse_arg, validate
from deeplab_jax.data import archives, images, masks
from deeplab_jax.data.sources.sbd import read_class_mask
from deeplab_jax.errors import UsageError, UserError
from deeplab_jax.labels import SYNTHETIC, VOC
from deeplab_jax.pretrained import PretrainedNetwork, bundle
from deeplab_jax.pretrained.network import variable_shapes
from tests.conftest import scene, write_index_png, write_sbd_mat

fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_one_line(error: Exception) -> None:
    assert str(error).strip()
    assert len(str(error).split("\n")) == 1, str(error)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes with a few changed, removed or inserted."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(changed) - 1))
        kind = draw(st.sampled_from(("change", "change", "cut", "insert", "zero")))
        if kind == "change":
            changed[position] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[max(1, position) :]
        elif kind == "insert":
            changed[position:position] = draw(st.binary(min_size=1, max_size=8))
        else:
            changed[position : position + 4] = b"\xff\xff\xff\xff"[: len(changed) - position]
    return bytes(changed)


# ---- Configs ----

values = st.one_of(
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["True", "None", "()", "(1,", "[", "{}", "1e400", "0x10", "--", "'a", "lambda: 0", "9" * 5000]),
)


@fuzz
@given(st.one_of(st.text(max_size=30), st.tuples(st.sampled_from(["size", "name", "flag", "x"]), values).map("=".join)))
@example("size=" + "(" * 300 + ")" * 300)
@example("size=\0")
@example("size=" + "-" * 5000 + "1")
def test_config_arguments(text):
    try:
        parsed = parse_arg(text, size=64, rate=0.1, name="a", flag=False, free=None)
    except UserError as error:
        assert_one_line(error)
    else:
        assert (type(parsed.size), type(parsed.flag), type(parsed.name)) == (int, bool, str)


def fields(config, path=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from fields(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


@fuzz
@given(st.sampled_from(list(fields(base_config()))), values)
def test_overrides_on_the_command_line(field, value):
    base = base_config()
    base.unlock()
    base.model.backbone, base.data.name, base.data.batch_size, base.data.image_size = (
        "resnet10_v1_slim",
        "a",
        8,
        (64, 64),
    )
    base.optimizer.learning_rate = 0.1
    base.lock()
    try:
        validate(parse_config([f"--config.{field}={value}"], base=base))
    except (UserError, UsageError) as error:
        assert_one_line(error)


# ---- Images and masks ----


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small mask or image of each kind, as bytes."""
    folder = tmp_path_factory.mktemp("files")
    image, label = scene(3, height=20, width=24)
    write_index_png(folder / "palette.png", label)
    Image.fromarray(label).save(folder / "gray.png")
    Image.fromarray(VOC.color_table()[label].astype(np.uint8)).save(folder / "color.png")
    Image.fromarray(image).save(folder / "image.jpg")
    write_sbd_mat(folder / "mask.mat", label)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["palette.png", "gray.png", "color.png"])
def test_masks(files, tmp_path, name):
    path = tmp_path / name

    @fuzz
    @given(damaged(files[name]))
    def check(content):
        path.write_bytes(content)
        try:
            label = masks.read_mask(path, VOC)
        except UserError as error:
            assert_one_line(error)
        else:
            assert label.dtype == np.uint8
            assert ((label < 21) | (label == 255)).all()

    check()


@pytest.mark.parametrize("name", ["image.jpg", "gray.png", "palette.png"])
def test_images(files, tmp_path, name):
    path = tmp_path / name

    @fuzz
    @given(damaged(files[name]))
    def check(content):
        path.write_bytes(content)
        for read in (
            lambda: images.read_image(path),
            lambda: images.encode_image(path),
            lambda: images.decode_image(content, "a"),
            lambda: images.decode_mask(content, "a"),
            lambda: images.encoded_size(content, "a"),
        ):
            try:
                read()
            except UserError as error:
                assert_one_line(error)

    check()


def test_an_image_whose_header_claims_too_many_pixels_is_refused(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(content, "png")
    png = bytearray(content.getvalue())
    png[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(UserError, match="has more than .* pixels; scale it down"):
        images.read_image(tmp_path / "bomb.png")
    with pytest.raises(UserError, match="the stored mask of a is damaged"):
        images.decode_mask(bytes(png), "a")


def test_mat_files(files, tmp_path):
    path = tmp_path / "mask.mat"

    @fuzz
    @given(damaged(files["mask.mat"]))
    def check(content):
        path.write_bytes(content)
        try:
            read_class_mask(path)
        except UserError as error:
            assert_one_line(error)

    check()


# ---- Archives ----


def small_archive(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
            for name in ("a/b.txt", "a/c.txt", "d.txt"):
                file.writestr(name, name * 20)
    else:
        with tarfile.open(fileobj=content, mode=f"w:{kind}") as file:
            for name in ("a/b.txt", "a/c.txt", "d.txt"):
                member = tarfile.TarInfo(name)
                member.size = len(name)
                file.addfile(member, io.BytesIO(name.encode()))
    return content.getvalue()


@pytest.mark.parametrize("kind", ["zip", "", "gz"])
def test_archives(tmp_path, kind):
    path = tmp_path / "archive"

    @fuzz
    @given(damaged(small_archive(kind)))
    def check(content):
        path.write_bytes(content)
        try:
            archives.extract(path, tmp_path / "deep" / "out", is_needed=lambda _: True)
        except UserError as error:
            assert_one_line(error)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"archive", "deep"}
        assert {entry.name for entry in (tmp_path / "deep").glob("*")} <= {"out"}

    check()


# ---- Saved networks ----


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    model = base_config().model
    model.backbone, model.atrous_rates = "resnet10_v1_slim", (1, 2)
    model.aspp_channels = model.decoder_channels = model.low_level_channels = 8
    shapes = variable_shapes(model, SYNTHETIC.num_classes)
    variables = {}
    for path, shape in shapes.items():
        group = variables
        *parents, name = path.split("/")
        for parent in parents:
            group = group.setdefault(parent, {})
        group[name] = np.zeros(shape, np.float32)
    folder = tmp_path_factory.mktemp("preset") / "net"
    bundle.save(PretrainedNetwork(model, variables, SYNTHETIC, "guide", (32, 32)), folder)
    return folder


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def check_loading(preset):
    try:
        bundle.load(preset)
    except UserError as error:
        assert_one_line(error)


@contextlib.contextmanager
def restored(path):
    """Restores the content of a file at the end."""
    original = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(original)


def test_the_config_of_a_saved_network(preset):
    path = preset / "config.json"
    original = path.read_bytes()
    whole = json.loads(original)
    places = [(key,) for key in whole] + [("model", key) for key in whole["model"]]

    @settings(fuzz, max_examples=60)
    @given(st.sampled_from(places), json_values)
    def check(place, value):
        changed = json.loads(original)
        group = changed["model"] if len(place) == 2 else changed
        group[place[-1]] = value
        path.write_text(json.dumps(changed))
        check_loading(preset)

    with restored(path):
        check()


def test_the_weights_of_a_saved_network(preset):
    path = preset / "model.safetensors"
    original = path.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")

    @settings(fuzz, max_examples=40)
    @given(damaged(original[:header]))
    def check(content):
        path.write_bytes(content + original[header:])
        check_loading(preset)

    with restored(path):
        check()
