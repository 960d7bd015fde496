"""The mesh of a config: sizes of its axes, the order of devices, and the batches and images it must divide."""

import jax
import pytest

from deeplab_jax.config import base_config, load_config
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel.mesh import count_slices, make_mesh, mesh_sizes, mesh_slices, validate_mesh


def check(config, *, devices, processes=1, slices=1):
    protocol = protocol_for(config)
    sizes = {"input_sizes": protocol.input_sizes, "can_split_rows": protocol.can_split_rows}
    validate_mesh(config, devices, processes, slices=slices, **sizes)


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


# ---- Slices ----


@pytest.fixture
def on_slices(monkeypatch):
    """`on_slices(1, 0, ...)` makes the devices of this machine say that they belong to these slices."""

    def place(*slices):
        monkeypatch.setattr(mesh_lib, "_slice_of", lambda device: slices[device.id])
        return jax.devices()

    return place


def arranged(devices, **sizes):
    """The ids of the devices in the order of the axis `data`, fsdp and spatial below it."""
    config = base_config().mesh
    config.update(sizes)
    mesh = make_mesh(config, devices)
    return [[[device.id for device in row] for row in part] for part in mesh.devices]


def test_only_the_data_axis_connects_slices(on_slices):
    devices = on_slices(1, 0, 1, 0, 1, 0, 1, 0)  # JAX does not promise an order
    assert count_slices(devices) == 2
    assert arranged(devices, fsdp=2) == [[[1], [3]], [[5], [7]], [[0], [2]], [[4], [6]]]
    assert arranged(devices, data=2, spatial=-1) == [[[1, 3, 5, 7]], [[0, 2, 4, 6]]]
    # A mesh that needs fewer devices takes the first of each slice.
    assert arranged(devices, data=2, fsdp=2) == [[[1], [3]], [[0], [2]]]


def test_slices_can_be_ignored(on_slices):
    devices = on_slices(1, 0, 1, 0, 1, 0, 1, 0)
    assert arranged(devices, data=1, fsdp=-1, slices=1) == [[[1], [3], [5], [7], [0], [2], [4], [6]]]


def test_devices_that_do_not_know_their_slices_are_split_in_order():
    assert arranged(jax.devices(), data=2, fsdp=2, slices=2) == [[[0], [1]], [[4], [5]]]
    assert arranged(jax.devices(), data=2, fsdp=2) == [[[0], [1]], [[2], [3]]]


@pytest.mark.parametrize(
    ("fields", "slices", "message"),
    [
        (
            {"data": 1, "fsdp": 8},
            2,
            "^mesh.data=1 does not divide over 2 slices; use a multiple of 2, or mesh.slices=1",
        ),
        ({"data": 3}, 2, "^mesh.data=3 does not divide over 2 slices"),
        ({"slices": 4}, 2, "^mesh.slices=4, but the devices belong to 2 slices; set it to 2 or to -1"),
        ({"slices": 3}, 1, "^mesh.slices=3 does not divide 8 devices"),
        ({"slices": 0}, 1, "^mesh.slices=0 must be at least 1, or -1"),
        ({"data": 1, "slices": 2}, 1, "^mesh.data=1 does not divide over 2 slices"),
        ({"data": 1, "fsdp": 8, "slices": 1}, 2, None),
        ({"data": 4, "fsdp": 2}, 2, None),
    ],
)
def test_slices_that_do_not_fit_are_one_line(fields, slices, message):
    config = load_config("quickstart", batch=24)
    config.mesh.update(fields)
    if message is None:
        check(config, devices=8, slices=slices)
        return
    with pytest.raises(UserError, match=message) as caught:
        check(config, devices=8, slices=slices)
    assert "\n" not in str(caught.value)


def test_slices_of_different_sizes_are_refused(on_slices):
    devices = on_slices(0, 0, 0, 0, 0, 0, 1, 1)
    with pytest.raises(UserError, match="^the mesh needs 4 devices in each of 2 slices, but one has 2"):
        arranged(devices)


def test_a_mesh_without_slices_has_one():
    assert count_slices(jax.devices()) == 1
    assert mesh_slices(base_config().mesh, 8, found=1) == 1
