"""Protocols that resize each image to a size of its own: sizes, resizing, batches of equal views, mistakes."""

import contextlib

import cv2
import numpy as np
import pytest

from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.data.eval_pipeline import count_batches
from deeplab_jax.data.view_protocols import KeepRatio, Windows, window_count
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC


def protocol_of(name, **fields):
    config = config_lib.base_config()
    config.eval.protocol = name
    config.eval.update(fields)
    return data.protocol_for(config)


class Images:
    """Examples whose first pixel tells their position."""

    name, split, label_set = "images", "val", SYNTHETIC

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        image = np.full((*self.sizes[index], 3), 10 * index, np.uint8)
        return {"image": image, "label": np.full(self.sizes[index], index, np.uint8), "id": str(index)}


@pytest.mark.parametrize(
    ("size", "scale", "multiple", "expected"),
    [
        # The factor is min(2048 / longer, 512 / shorter); sides are rounded half up, then up to the multiple.
        ((683, 512), 1.0, 32, (704, 512)),
        ((512, 683), 1.0, 1, (512, 683)),
        ((427, 640), 1.0, 1, (512, 767)),  # 767.4
        ((427, 640), 1.0, 32, (512, 768)),
        ((100, 900), 1.0, 32, (256, 2048)),  # the longer side limits it: 227.6
        ((427, 640), 0.75, 32, (384, 576)),  # 384 by 575.6
        ((1500, 1000), 1.75, 32, (1344, 896)),
    ],
)
def test_images_are_scaled_to_fit_and_then_aligned(size, scale, multiple, expected):
    protocol = protocol_of("keep_ratio", scale_to=(512, 2048), size_multiple=multiple)
    assert protocol.view_size(size, scale) == expected


def test_aligning_starts_from_the_scaled_image():
    image = np.random.default_rng(0).integers(0, 256, (43, 64, 3), dtype=np.uint8)
    protocol = protocol_of("keep_ratio", scale_to=(51, 200), size_multiple=32)
    scaled = cv2.resize(image, (76, 51), interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(scaled, (96, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(protocol.make_view(image), expected)
    view, extent = protocol.fit(image)
    np.testing.assert_array_equal(view, expected)
    assert extent == (64, 96)
    assert (cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR) != expected).any()


@pytest.mark.parametrize(
    ("extent", "window", "stride", "count"),
    [(1024, 1024, 768, 1), (2048, 1024, 768, 3), (2561, 1024, 768, 4), (1025, 1024, 768, 2), (300, 512, 341, 1)],
)
def test_as_many_windows_as_reach_the_end(extent, window, stride, count):
    assert window_count(extent, window, stride) == count


def test_windows_have_a_default_stride_and_can_follow_a_resizing():
    protocol = protocol_of("windows", window=(769, 513))
    assert (protocol.stride, protocol.average, protocol.scale_to) == ((513, 342), "logits", None)
    assert protocol.view_size((375, 500)) == (375, 500)
    assert protocol.view_size((375, 500), 0.5) == (188, 250)  # 187.5 is rounded up
    assert protocol.keeps_size(1.0)
    resized = protocol_of("windows", window=(512, 512), window_stride=(341, 341), scale_to=(512, 2048))
    assert resized.view_size((375, 500)) == (512, 683)
    assert not resized.keeps_size(1.0)
    # A view smaller than a window is not padded: MMSegmentation does not pad it.
    view, extent = protocol.fit(np.zeros((375, 600, 3), np.uint8))
    assert (view.shape[:2], extent) == ((375, 640), (375, 600))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("keep_ratio", {}, "eval.protocol=keep_ratio needs eval.scale_to; set it, for example to .512, 2048."),
        ("keep_ratio", {"scale_to": (2048, 512)}, "eval.scale_to=.2048, 512. must be .shorter side, longer side."),
        ("keep_ratio", {"scale_to": (512,)}, "eval.scale_to=.512,. must be .shorter side, longer side., each"),
        ("windows", {}, "eval.protocol=windows needs eval.window; set it, for example to .769, 769."),
        ("windows", {"window": (8, 64)}, "eval.window=.8, 64. must be at least the output stride 16 high and wide"),
        ("windows", {"window": (64, 64), "window_stride": (64, 65)}, "eval.window_stride=.64, 65. leaves pixels out"),
        ("windows", {"window": (64, 64), "window_average": "labels"}, "eval.window_average='labels' does not exist"),
    ],
)
def test_mistakes_name_the_field(name, fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        protocol_of(name, **fields)


@pytest.mark.parametrize(
    ("name", "group", "fields"),
    [("keep_ratio", "scale_to", {"scale_to": (512, 2048)}), ("windows", "window", {"window": (64, 64)})],
)
def test_the_input_size_can_be_set_in_the_config_and_in_the_protocol(name, group, fields):
    config = config_lib.base_config()
    config.eval.protocol = name
    config.eval.update(fields)
    data.set_input_size(config, [96, 120])
    assert config.eval[group] == (96, 120)
    assert protocol_of(name, **fields).with_input_size([96, 120]) == data.protocol_for(config)


SIZES = [(40, 60), (60, 40), (40, 60), (41, 60), (20, 30), (40, 61)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("keep_ratio", {"scale_to": (32, 64), "size_multiple": 16}),
        ("windows", {"window": (32, 32)}),
        ("windows", {"window": (48, 64), "scale_to": (32, 64)}),
    ],
)
def test_batches_hold_equal_views_and_every_example_once(name, fields, processes):
    protocol, source, scales = protocol_of(name, **fields), Images(SIZES), (1.5, 1.0)
    seen, lengths = [], set()
    for index in range(processes):
        options = {"batch_size": 2, "scales": scales, "process_index": index, "process_count": processes}
        with contextlib.closing(data.eval_batches(source, protocol, **options)) as stream:
            batches = list(stream)
        lengths.add(len(batches))
        for batch in batches:
            for i in np.flatnonzero(batch["valid"]):
                position = int(batch["id"][i])
                seen.append(position)
                assert tuple(batch["size"][i]) == SIZES[position]
                height, width = SIZES[position]
                assert (batch["label"][i, :height, :width] == position).all()
                assert (batch["label"][i, height:] == 255).all()
                for view, extent, scale in (("image", "extent", 1.0), ("image_1", "extent_1", 1.5)):
                    expected = protocol.make_view(source[position]["image"], scale)
                    height, width = batch[extent][i].tolist()
                    np.testing.assert_array_equal(batch[view][i, :height, :width], expected)
                    if name == "keep_ratio" or "scale_to" in fields and scale == 1:
                        assert batch[view].shape[1:3] == (height, width)  # never padded
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert lengths == {count_batches(source, protocol, 2 * processes, scales, None)}


def test_protocols_can_be_told_apart_by_their_classes():
    assert isinstance(protocol_of("keep_ratio", scale_to=(512, 2048)), KeepRatio)
    assert isinstance(protocol_of("windows", window=(512, 512)), Windows)
