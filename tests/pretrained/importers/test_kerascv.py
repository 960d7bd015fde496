"""Import of KerasCV files. goldens/kerascv_forward.npz contains the outputs of KerasCV with the same weights."""

import json
import pathlib

import h5py
import jax
import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax.config import load_config
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.models import build_model
from deeplab_jax.pretrained.importers import kerascv
from deeplab_jax.pretrained.readers import keras_h5
from tests.goldens import formula
from tests.pretrained.importers.keras_files import fill_legacy, fill_weights, write_archive

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "kerascv_forward.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def layout(golden):
    return json.loads(str(golden["layout"]))


@pytest.fixture(scope="module")
def backbone_layout(golden):
    return json.loads(str(golden["backbone_layouts"]))["50"]


@pytest.fixture(scope="module")
def values(layout, backbone_layout):
    rows = layout + backbone_layout
    return {path: formula.weight(path, shape, is_norm=False) for *_, path, shape in rows}


@pytest.fixture(scope="module")
def network(tmp_path_factory, layout, values):
    path = tmp_path_factory.mktemp("kerascv") / "model.weights.h5"
    with h5py.File(path, "w") as file:
        fill_weights(file, layout, values)
    return kerascv.load(path)


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def assert_same(variables, others):
    variables, others = flat(variables), flat(others)
    assert variables.keys() == others.keys()
    for path, value in variables.items():
        np.testing.assert_array_equal(value, others[path], err_msg=path)


def sample(array, count=10):
    """Samples pixels as make_kerascv.py does."""
    rows, columns = (np.linspace(0, extent - 1, min(count, extent)).astype(int) for extent in array.shape[1:3])
    return np.asarray(array)[:, rows][:, :, columns]


def test_the_config_equals_the_guides(network):
    assert network.model.to_dict() == load_config("kerascv_guide").model.to_dict()
    assert network.label_set == VOC
    assert (network.protocol, network.image_size) == ("squeeze", (512, 512))
    assert network.report[0] == "307 arrays imported, 0 with reordered axes; 0 missing, 0 unused"


def assert_probabilities(logits, golden, size):
    probabilities = sample(jax.nn.softmax(logits, axis=-1))
    assert golden[f"probabilities{size}"].std() > 0.02  # the spread is as large as the mean, 1 / 21
    # float32 sums in another order: 2.4e-7 on the machine of the goldens
    np.testing.assert_allclose(probabilities, golden[f"probabilities{size}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [256, 640])
def test_probabilities_equal_kerascvs(golden, network, size):
    """At 640 pixels the features are 20x20, so the taps at rate 18 see more than padding."""
    model = build_model(network.model, 21)
    images = formula.images(f"image{size}", (1, size, size, 3))
    run = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
    assert_probabilities(run(network.variables, images), golden, size)


def test_probabilities_and_every_block_equal_kerascvs(golden, network):
    model = build_model(network.model, 21)
    images = formula.images("image64", (1, 64, 64, 3))

    @jax.jit
    def run(variables, images):
        (logits, _), state = model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return logits, state["intermediates"]

    logits, outputs = run(network.variables, images)
    assert_probabilities(logits, golden, 64)
    captured = {path.removesuffix("/__call__"): value[0] for path, value in flat(outputs).items()}
    ours = {"conv1_conv": "backbone/stem_conv", "aspp": "aspp", "low_level": "decoder/low_level", "head": "decoder"}
    branches = ("branch_1x1", "branch_atrous1", "branch_atrous2", "branch_atrous3", "branch_pooling")
    ours |= {f"aspp{i}": f"aspp/{branch}" for i, branch in enumerate(branches)}
    for stack, count in enumerate((3, 4, 6, 3)):
        for block in range(1, count + 1):
            ours[f"v2_stack_{stack}_block{block}_out"] = f"backbone/stage{stack + 1}_block{block}"
    theirs = {name.partition("/")[2]: value for name, value in golden.items() if name.startswith("endpoint/")}
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        value = captured[ours[name]]
        value = sample(value, 2)[..., :: max(1, value.shape[-1] // 16)].reshape(expected.shape)
        # float32 sums in another order, in up to 50 layers whose values reach 10
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_other_files_of_the_same_network_give_the_same_variables(tmp_path, golden, layout, values, network):
    with h5py.File(tmp_path / "unnamed.weights.h5", "w") as file:
        fill_weights(file, layout, values, record_names=False)
    assert_same(kerascv.load(tmp_path / "unnamed.weights.h5").variables, network.variables)

    write_archive(tmp_path / "model.keras", json.loads(str(golden["config"])), layout, values)
    archived = kerascv.load(tmp_path / "model.keras")
    assert_same(archived.variables, network.variables)
    assert archived.model.to_dict() == network.model.to_dict()
    assert len(network.report) == len(archived.report) + 1  # nothing is assumed


def test_backbones_are_read_from_both_layouts(tmp_path, backbone_layout, values, network):
    with h5py.File(tmp_path / "classification-v2-notop.h5", "w") as file:
        fill_legacy(file, backbone_layout, values)
    with h5py.File(tmp_path / "backbone.weights.h5", "w") as file:
        fill_weights(file, backbone_layout, values)
    for name in ("classification-v2-notop.h5", "backbone.weights.h5"):
        backbone = kerascv.load(tmp_path / name)
        assert backbone.label_set is None
        assert backbone.model.to_dict() == network.model.to_dict()
        own = {collection: {"backbone": tree["backbone"]} for collection, tree in network.variables.items()}
        assert_same(backbone.variables, own)
        assert backbone.report[1].startswith(
            "4 skipped (KerasCV's DeepLab uses the features before this BatchNorm): post_bn/"
        )


@pytest.mark.parametrize("depth", ["101", "152"])
def test_deeper_backbones_are_read_by_name_and_by_place(tmp_path, golden, depth):
    layout = json.loads(str(golden["backbone_layouts"]))[depth]
    values = {path: float(i) for i, (*_, path, _) in enumerate(layout)}
    networks = []
    for record_names in (True, False):
        with h5py.File(tmp_path / f"{record_names}.weights.h5", "w") as file:
            fill_weights(file, layout, values, record_names=record_names)
        networks.append(kerascv.load(tmp_path / f"{record_names}.weights.h5"))
    assert networks[0].model.backbone == f"resnet{depth}_v2_kerascv"
    leaves = [{path: value.flat[0] for path, value in flat(network.variables).items()} for network in networks]
    assert leaves[0] == leaves[1]
    assert len(set(leaves[0].values())) == len(leaves[0])


def test_rates_and_rescaling_come_from_the_archive(tmp_path, golden, layout, values):
    values = dict.fromkeys(values, 0.5)
    config = json.loads(str(golden["config"]))
    fields = config["config"]
    fields["spatial_pyramid_pooling"]["config"]["dilation_rates"] = [3, 6, 9]
    fields["backbone"]["config"]["include_rescaling"] = False
    write_archive(tmp_path / "model.keras", config, layout, values)
    model = kerascv.load(tmp_path / "model.keras").model
    assert model.atrous_rates == (3, 6, 9)
    assert model.input_std == (1.0, 1.0, 1.0)
    fields["backbone"]["config"]["stackwise_dilations"] = [1, 1, 1, 2]
    write_archive(tmp_path / "dilated.keras", config, layout, values)
    with pytest.raises(UserError, match=r"dilations \[1, 1, 1, 2\]"):
        kerascv.load(tmp_path / "dilated.keras")


def test_optimizer_state_is_skipped(tmp_path, layout, values):
    values = dict.fromkeys(values, 0.5)
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        fill_weights(file, layout, values)
        file.create_dataset("optimizer/vars/0", data=7)
    assert "1 skipped (optimizer state): optimizer/0" in kerascv.load(tmp_path / "model.weights.h5").report


def without(layout, name):
    return [row for row in layout if not row[3].startswith(name)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: without(rows, "v2_stack_1_block2_1_bn"), r"has 55 BatchNorms, which does not match a KerasCV"),
        (
            lambda rows: without(rows, "v2_stack_1_block2_1_conv"),
            r"v2_stack_1_block2_1_conv/kernel is missing in the file",
        ),
        (lambda rows: without(rows, "sequential_7/segmentation_output"), "has no layer 'segmentation_output/kernel'"),
        (lambda rows: [*rows, ["layers/dense", "extra", "0", "extra/kernel", [2, 2]]], "dense/kernel is unused"),
        (
            lambda rows: [
                [*row[:4], [1, 1, 2, 2]] if row[3] == "v2_stack_3_block1_2_conv/kernel" else row for row in rows
            ],
            r"v2_stack_3_block1_2_conv/kernel has shape \(1, 1, 2, 2\)",
        ),
        (
            lambda rows: [
                [row[0], "v2_stack_3_block1_1_conv" if row[1] == "v2_stack_3_block1_2_conv" else row[1], *row[2:]]
                for row in rows
            ],
            "has two layers v2_stack_3_block1_1_conv",
        ),
    ],
)
def test_other_networks_are_refused(tmp_path, layout, change, message):
    layout = change(layout)
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        fill_weights(file, layout, {path: 0.5 for *_, path, _ in layout})
    with pytest.raises(UserError, match=message):
        kerascv.load(tmp_path / "model.weights.h5")


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UserError, match="is not a weight file of Keras or is damaged"):
        keras_h5.read(tmp_path / "text.h5")
    with pytest.raises(UserError, match="does not exist"):
        keras_h5.read(tmp_path / "absent.h5")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("something", data=1)
    with pytest.raises(UserError, match="has no layers with weights"):
        keras_h5.read(tmp_path / "empty.h5")
    (tmp_path / "secret").write_bytes(bytes(8))
    with h5py.File(tmp_path / "outside.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.create_dataset("0", (2,), "float32", external=[(tmp_path / "secret", 0, 8)])
    with pytest.raises(UserError, match="/layers/conv2d/vars/0 is stored outside the file"):
        keras_h5.read(tmp_path / "outside.weights.h5")
