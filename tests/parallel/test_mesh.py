"""The mesh of a config: sizes of its axes, and the batches and images it must divide."""

import pytest

from deeplab_jax.config import base_config, load_config
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.parallel.mesh import mesh_sizes, validate_mesh


def check(config, *, devices, processes=1):
    protocol = protocol_for(config)
    validate_mesh(config, devices, processes, input_sizes=protocol.input_sizes, can_split_rows=protocol.can_split_rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.batch_size", 6, "^data.batch_size=6 does not divide over 4 devices; use a multiple of 4"),
        ("eval.batch_size", 6, "^eval.batch_size=6 does not divide over 4 devices"),
        ("mesh.data", 5, "^mesh.data=5, mesh.fsdp=1, mesh.spatial=1 needs 5 devices, but there are 4"),
        ("mesh.data", 0, "^mesh.data=0 must be at least 1, or -1"),
        ("mesh.fsdp", -1, "^mesh.data=-1, mesh.fsdp=-1, mesh.spatial=1: only one axis can be -1"),
        ("mesh.fsdp", 3, "^mesh.data=-1, mesh.fsdp=3, mesh.spatial=1 does not divide 4 devices"),
        ("train.accumulate_steps", 3, "^data.batch_size=.* train.accumulate_steps=3 parts .* use a multiple of 12"),
    ],
)
def test_an_invalid_mesh_or_batch_is_named(field, value, message):
    config = load_config("quickstart")
    group, name = field.split(".")
    config[group][name] = value
    with pytest.raises(UserError, match=message) as caught:
        check(config, devices=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 6}, "^unlabeled.batch_size=6 does not divide into .* over 4 devices; use a multiple of 4$"),
        (
            {"batch_size": 4},
            "^unlabeled.batch_size=4 must be a multiple of 8, because CutMix mixes pairs of images on each device; "
            "change it, or set unlabeled.cut_mix=0$",
        ),
        ({"batch_size": 4, "cut_mix": 0.0}, None),
        ({"batch_size": 8}, None),
        ({"batch_size": 6, "split": None}, None),
    ],
)
def test_unlabeled_images_divide_over_the_devices(fields, message):
    config = load_config("quickstart")
    config.unlabeled.update({"split": "train"} | fields)
    if message is None:
        check(config, devices=4)
        return
    with pytest.raises(UserError, match=message):
        check(config, devices=4)


def test_batches_must_divide_over_the_devices():
    config = load_config("quickstart", batch=6)
    config.mesh.data = 2
    check(config, devices=8)
    config.mesh.update({"data": 2, "fsdp": 2})
    with pytest.raises(UserError, match="^data.batch_size=6 does not divide over 4 devices"):
        check(config, devices=8)
    config.data.batch_size, config.eval.batch_size = 4, 6
    with pytest.raises(UserError, match="^eval.batch_size=6 does not divide over 4 devices"):
        check(config, devices=8)


def test_an_axis_of_minus_one_takes_the_remaining_devices():
    config = base_config().mesh
    assert mesh_sizes(config, 8) == {"data": 8, "fsdp": 1, "spatial": 1}
    config.update({"data": 2, "fsdp": -1, "spatial": 2})
    assert mesh_sizes(config, 8) == {"data": 2, "fsdp": 2, "spatial": 2}
    config.update({"fsdp": 1})
    assert mesh_sizes(config, 7) == {"data": 2, "fsdp": 1, "spatial": 2}  # four of the seven


def test_several_processes_must_use_all_devices():
    config = load_config("quickstart", batch=8)
    config.mesh.data = 4
    check(config, devices=8)
    with pytest.raises(UserError, match="^the mesh uses 4 of 8 devices"):
        check(config, devices=8, processes=2)


def test_an_image_stays_within_one_process():
    config = load_config("quickstart", batch=8, size=128)
    config.eval.protocol = "guide"
    config.model.output_stride = 8
    config.mesh.update({"data": 2, "spatial": 4})
    check(config, devices=8, processes=2)
    with pytest.raises(UserError, match="^mesh.spatial=4 splits images over processes.* the 2 devices per process"):
        check(config, devices=8, processes=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": (72, 64)}, r"^data.image_size=\(72, 64\) does not divide; .* must be a multiple of 32"),
        ({"eval.image_size": (33, 64)}, r"^eval.image_size=\(33, 64\) does not divide"),
        ({"eval.image_size": None}, "^eval.image_size is not set; .* must be a multiple of 32"),
        ({"eval.protocol": "squeeze"}, "^eval.protocol='squeeze' .*mesh.spatial=4"),
        ({"model.align_corners": True}, "^model.align_corners=True .*mesh.spatial=4"),
        ({"eval.scales": (0.75, 1.0)}, "^eval.scales=.0.75, 1.0. .*mesh.spatial=4"),
        ({"data.image_size": (64, 50), "eval.image_size": (96, 17)}, None),  # widths are free
        ({"eval.protocol": "guide", "eval.image_size": None}, None),
    ],
)
def test_split_rows_need_divisible_heights(changes, message):
    config = load_config("quickstart", batch=8)
    config.model.output_stride = 8
    config.data.image_size = config.eval.image_size = (64, 64)
    config.eval.protocol = "whole"
    config.mesh.update({"data": 2, "spatial": 4})
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    if message is None:
        check(config, devices=8)
    else:
        with pytest.raises(UserError, match=message):
            check(config, devices=8)
