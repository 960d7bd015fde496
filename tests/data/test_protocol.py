"""Evaluation protocols: sizes, what an image becomes for prediction, and which config field sets the input size."""

import numpy as np
import pytest

from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.data.protocol import Guide, Squeeze, Whole
from deeplab_jax.data.view_protocols import KeepRatio, Windows
from deeplab_jax.errors import UserError


def config_of(name, *, eval_size=None):
    config = config_lib.base_config()
    config.data.image_size, config.eval.image_size, config.eval.protocol = (32, 48), eval_size, name
    config.eval.scale_to, config.eval.window = (32, 48), (32, 48)
    return config


def protocol_of(name, **options):
    return data.protocol_for(config_of(name, **options))


def test_every_legal_name_has_a_protocol():
    classes = [type(protocol_of(name)) for name in config_lib.PROTOCOLS]
    assert classes == [Whole, Squeeze, Guide, KeepRatio, Windows]
    with pytest.raises(UserError, match="eval.protocol='hole' does not exist; did you mean whole"):
        protocol_of("hole")


@pytest.mark.parametrize(
    ("name", "eval_size", "sizes"),
    [
        ("whole", (64, 96), {"data.image_size": (32, 48), "eval.image_size": (64, 96)}),
        ("whole", None, {"data.image_size": (32, 48), "eval.image_size": None}),
        ("squeeze", (64, 96), {"data.image_size": (32, 48)}),
        ("guide", None, {"data.image_size": (32, 48)}),
        ("keep_ratio", None, {"data.image_size": (32, 48), "eval.scale_to": None}),
        ("windows", None, {"data.image_size": (32, 48), "eval.window": None}),
    ],
)
def test_input_sizes_name_the_fields_that_set_them(name, eval_size, sizes):
    assert protocol_of(name, eval_size=eval_size).input_sizes == sizes


@pytest.mark.parametrize(
    ("name", "eval_size", "sizes"),
    [
        ("whole", (64, 96), ((64, 96), (64, 96))),
        ("whole", None, ((65, 33), (65, 33))),
        ("squeeze", (64, 96), ((32, 48), (50, 20))),
        ("guide", None, ((32, 48), (32, 48))),
    ],
)
def test_batches_have_the_sizes_of_the_protocol(name, eval_size, sizes):
    assert protocol_of(name, eval_size=eval_size).batch_sizes(lambda: (50, 20)) == sizes


def test_a_split_is_read_for_its_largest_image_only_if_needed():
    def largest_size():
        raise AssertionError("reads a whole split")

    assert protocol_of("guide").batch_sizes(largest_size) == ((32, 48), (32, 48))
    assert protocol_of("whole", eval_size=(64, 96)).batch_sizes(largest_size) == ((64, 96), (64, 96))


@pytest.mark.parametrize("size", [(), (0, 0), (64,), ("a", "b"), (64, 8), (64, 2**16)])
@pytest.mark.parametrize("field", ["data.image_size", "eval.image_size"])
def test_a_size_that_no_image_can_have_is_named(field, size):
    config = config_of("whole")
    config.update_from_flattened_dict({field: size})
    with pytest.raises(UserError, match=f"^{field}=.* must be .height, width., each at least the output stride 16"):
        data.protocol_for(config)


@pytest.mark.parametrize("name", config_lib.PROTOCOLS)
def test_only_protocols_that_resize_to_it_need_a_training_size(name):
    config = config_of(name)
    config.data.image_size = None
    if name in ("keep_ratio", "windows"):
        assert data.protocol_for(config).train_size is None
    elif name == "whole":
        assert data.protocol_for(config).fit(np.zeros((20, 30, 3), np.uint8))[1] == (20, 30)
    else:
        with pytest.raises(UserError, match=f"^eval.protocol={name} needs data.image_size; set it$"):
            data.protocol_for(config)


def test_images_of_different_sizes_cannot_split_rows():
    split = {name: protocol_of(name).can_split_rows for name in config_lib.PROTOCOLS}
    assert split == {"whole": True, "squeeze": False, "guide": True, "keep_ratio": False, "windows": False}


@pytest.mark.parametrize("name", ["squeeze", "guide"])
def test_resizing_protocols_fit_an_image_to_the_training_size(name):
    fitted, size = protocol_of(name).fit(np.zeros((10, 20, 3), np.uint8))
    assert fitted.shape == (32, 48, 3)
    assert size == (32, 48)


@pytest.mark.parametrize(
    ("eval_size", "image", "fitted", "inside"),
    [
        ((64, 96), (40, 50), (64, 96), (40, 50)),  # padded
        ((64, 96), (128, 96), (64, 96), (64, 48)),  # shrunk to fit, then padded
        (None, (40, 130), (65, 193), (40, 130)),  # padded to the next buckets, plus 1
    ],
)
def test_whole_images_are_padded_and_shrunk_only_if_needed(eval_size, image, fitted, inside):
    pixels, size = protocol_of("whole", eval_size=eval_size).fit(np.full((*image, 3), 7, np.uint8))
    assert pixels.shape == (*fitted, 3)
    assert size == inside
    assert (pixels[: inside[0], : inside[1]] == 7).all()
    assert (pixels[inside[0] :] == (124, 116, 104)).all()


@pytest.mark.parametrize(("name", "group"), [("whole", "eval"), ("squeeze", "data"), ("guide", "data")])
def test_the_input_size_can_be_set_in_the_config_and_in_the_protocol(name, group):
    config = config_of(name)
    data.set_input_size(config, [96, 64])
    assert config[group].image_size == (96, 64)
    assert data.protocol_for(config).input_size == (96, 64)
    assert protocol_of(name).with_input_size([96, 64]) == data.protocol_for(config)


def test_buckets_contain_their_sizes_add_little_and_are_few():
    extents = range(1, 4097)
    buckets = [data.bucket(extent) for extent in extents]
    assert all(extent <= size for extent, size in zip(extents, buckets, strict=True))
    assert all(size - extent < max(64, extent / 4) for extent, size in zip(extents, buckets, strict=True))
    assert [len({size for size in buckets if size <= most}) for most in (512, 1024, 2048, 4096)] == [8, 12, 16, 20]
    assert buckets == sorted(buckets)
