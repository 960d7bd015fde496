"""Functions of users: how a config names them, what they get, and what happens to a wrong result."""

import contextlib
import itertools
import pathlib
import re
import sys

import numpy as np
import pytest

from deeplab_jax import data, register_transform
from deeplab_jax.config import base_config
from deeplab_jax.data import transforms
from deeplab_jax.errors import UserError
from tests.support import own_transforms

EXAMPLES = 6
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "augmentation.md"


def batches(count=3, examples_seen=0, **fields):
    config = base_config()
    config.data.update({"batch_size": 2, "image_size": (24, 32), "random_flip": "none", **fields})
    source = data.open_source("synthetic", "train", num_examples=EXAMPLES, image_size=(24, 32))
    with contextlib.closing(data.train_batches(source, config.data, seed=0, examples_seen=examples_seen)) as stream:
        return list(itertools.islice(stream, count))


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(transforms.custom, "_registered", {})


def test_a_function_is_named_by_its_module():
    assert transforms.find_transform("tests.support.own_transforms:shift") is own_transforms.shift


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_fog.py").write_text("def fog(image, label, rng):\n    return image // 2, label\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    image, label = transforms.find_transform("my_own_fog:fog")(np.full((2, 2, 3), 8), None, None)
    assert (image == 4).all()
    assert label is None


def test_a_registered_function_sees_the_image_before_the_other_transforms(registered):
    seen = []

    def crop(image, label, rng):
        seen.append((image.shape, label.shape, image.flags.writeable))
        image[:], label[:] = 7, 1  # changes copies
        return image[:5, :6], label[:5, :6]

    assert register_transform("crop", crop) is crop
    for batch in batches(transform="crop"):
        assert batch["image"].shape == (2, 24, 32, 3)  # resized
        assert (batch["image"] == 7).all()
        assert (batch["label"] == 1).all()
    assert set(seen) == {((24, 32, 3), (24, 32), True)}
    plain = batches()
    assert not np.array_equal(plain[0]["image"], np.full_like(plain[0]["image"], 7))


def test_a_function_may_change_what_it_gets():
    def erase(image, label, rng):
        image[:], label[:] = 0, 255
        return image, label

    image, label = np.full((4, 5, 3), 9, np.uint8), np.full((4, 5), 1, np.uint8)
    image.flags.writeable = False  # as decoded images can be
    erased, ignored = transforms.CustomTransform("erase", erase, 2)(image, label, np.random.default_rng(0), example="a")
    assert (erased == 0).all()
    assert (ignored == 255).all()
    assert (image == 9).all()
    assert (label == 1).all()


def test_its_random_numbers_belong_to_the_position_in_the_stream(registered):
    register_transform("shift", own_transforms.shift)
    whole = batches(6, transform="shift")
    rest = batches(2, transform="shift", examples_seen=8)
    for batch, other in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["label"], other["label"])
    plain = batches(6)
    shifts = set()
    for batch, other in zip(whole, plain, strict=True):
        for i in range(2):
            (shift,) = (
                pixels
                for pixels in range(4)
                if np.array_equal(batch["image"][i], np.roll(other["image"][i], pixels, axis=1))
            )
            np.testing.assert_array_equal(batch["label"][i], np.roll(other["label"][i], shift, axis=1))
            shifts.add(shift)
    assert len(shifts) > 1


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (lambda image, label: image, "must return two arrays, an image and its label"),
        (lambda image, label: {"image": image}, "must return two arrays, an image and its label"),
        (lambda image, label: (image, label.tolist()), "must return two arrays"),
        (
            lambda image, label: (image / 255, label),
            r"returned an image of float64 \(24, 32, 3\); it must be uint8 \(height, width, 3\)",
        ),
        (lambda image, label: (image[..., 0], label), r"returned an image of uint8 \(24, 32\); it must be uint8"),
        (lambda image, label: (image, label[1:]), r"returned a label of uint8 \(23, 32\); it must be uint8 \(24, 32\)"),
        (lambda image, label: (image, label.astype(int)), r"returned a label of int64 \(24, 32\); it must be uint8"),
        (
            lambda image, label: (image, np.where(label < 3, 100, label).astype(np.uint8)),
            "returned the label 100, which is not a class; labels must not be interpolated",
        ),
    ],
)
def test_a_wrong_result_is_named(result, problem, registered):
    register_transform("mine", lambda image, label, rng: result(image, label))
    with pytest.raises(UserError, match=rf"^data\.transform='mine' {problem}.* \(example .+\)$"):
        batches(transform="mine")


def test_an_error_of_the_function_is_one_line_with_its_place():
    message = (
        r"^data\.transform='tests\.support\.own_transforms:fail' failed on example \S+: RuntimeError: no fog today "
        r"\(.*own_transforms\.py, line 14\)$"
    )
    with pytest.raises(UserError, match=message):
        batches(transform="tests.support.own_transforms:fail")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fogg", r"data\.transform='fogg' is not registered; did you mean fog\?"),
        (
            "no_such_module:fog",
            r"data\.transform=.* cannot be imported: ModuleNotFoundError: No module named 'no_such_m",
        ),
        ("os:nosuch", r"data\.transform='os:nosuch': os has no function 'nosuch'; choose from (\w+, ){2}\w+$"),
        (
            "tests.support.own_transforms:shfit",
            r"data\.transform=.*: tests\.support\.own_transforms has no function .*shift",
        ),
        (
            "broken_module:fog",
            r"data\.transform=.* cannot be imported: ZeroDivisionError: .* \(.*broken_module\.py, line 2\)",
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(name, message, registered, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    register_transform("fog", own_transforms.shift)
    with pytest.raises(UserError, match=f"^{message}"):
        batches(transform=name)


def test_without_registered_functions_the_message_names_the_other_way(registered):
    with pytest.raises(UserError, match="^data.transform='fog' is not registered; write module:function to import a"):
        transforms.find_transform("fog")


def test_a_registered_name_has_no_colon():
    with pytest.raises(UserError, match="^transform name 'a:b' must not be empty or contain a colon$"):
        register_transform("a:b", own_transforms.shift)


# ---- The examples of docs/augmentation.md ----


def page_code(text):
    """The Python block of the page that contains a text."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if text in block]
    return code


def test_the_fog_of_the_page_fades_images_to_white(tmp_path, monkeypatch):
    (tmp_path / "my_fog.py").write_text(page_code("def add_fog"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    plain, foggy = batches(), batches(transform="my_fog:add_fog")
    for batch, other in zip(foggy, plain, strict=True):
        np.testing.assert_array_equal(batch["label"], other["label"])
        assert (batch["image"] >= other["image"]).all()
        assert (255 - batch["image"].astype(int) >= (255 - other["image"].astype(int)) // 2).all()
    assert not np.array_equal(foggy[0]["image"], plain[0]["image"])


def test_the_noise_of_the_page_is_registered(registered):
    values = {}
    exec(page_code("def add_noise"), values)
    assert values["config"].data.transform == "noise"
    difference = batches(1, transform="noise")[0]["image"].astype(int) - batches(1)[0]["image"]
    assert 6 < difference.std() < 9  # 8, less where values are clipped


def test_albumentations_is_used_as_on_the_page(tmp_path, monkeypatch):
    pytest.importorskip("albumentations")
    (tmp_path / "my_weather.py").write_text(page_code("import albumentations"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    fields = {"transform": "my_weather:augment"}
    whole = batches(6, **fields)
    for batch, again in zip(whole[3:], batches(3, examples_seen=6, **fields), strict=True):
        np.testing.assert_array_equal(batch["image"], again["image"])
        np.testing.assert_array_equal(batch["label"], again["label"])
    assert any(
        not np.array_equal(batch["image"], plain["image"]) for batch, plain in zip(whole, batches(6), strict=True)
    )
