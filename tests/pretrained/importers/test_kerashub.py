"""Import of KerasHub files. goldens/kerashub.npz contains the outputs of KerasHub with the same weights."""

import json
import pathlib

import h5py
import jax
import numpy as np
import pytest
from flax import traverse_util

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.models import build_model
from deeplab_jax.pretrained.importers import kerashub
from tests.goldens import formula
from tests.pretrained.importers.keras_files import fill_weights, write_archive

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "kerashub.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def layout(golden):
    return json.loads(str(golden["layout"]))


@pytest.fixture(scope="module")
def values(layout):
    return {path: formula.weight(path, shape, is_norm=False) for *_, path, shape in layout}


@pytest.fixture(scope="module")
def network(tmp_path_factory, layout, values):
    path = tmp_path_factory.mktemp("kerashub") / "task.weights.h5"
    with h5py.File(path, "w") as file:
        fill_weights(file, layout, values)
        file.create_dataset("optimizer/vars/0", data=7)
    return kerashub.load(path)


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def sample(array, count=10):
    """Samples pixels as make_kerashub.py does."""
    rows, columns = (np.linspace(0, extent - 1, min(count, extent)).astype(int) for extent in array.shape[1:3])
    return np.asarray(array)[:, rows][:, :, columns]


def test_config_classes_and_report(network):
    assert network.model.backbone == "resnet50_v1"
    assert network.label_set == VOC
    assert (network.protocol, network.image_size) == ("squeeze", (512, 512))
    assert list(network.report) == [
        "306 arrays imported, 0 with reordered axes; 0 missing, 0 unused",
        "1 skipped (optimizer state): optimizer/0",
        "assumed, not in the file: rates (6, 12, 18) at stride 32",
    ]


def assert_logits(logits, golden, size):
    expected = golden[f"logits{size}"]
    assert expected.std() > 0.1
    np.testing.assert_allclose(sample(logits), expected, rtol=0, atol=1e-4)


def test_logits_equal_kerashubs_where_every_tap_counts(golden, network):
    """At 640 pixels the features are 20x20, so the taps at rate 18 see more than padding."""
    model = build_model(network.model, 21)
    images = formula.uniform("image640", (1, 640, 640, 3), 0, 2)
    logits, _ = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        network.variables, images
    )
    assert_logits(logits, golden, 640)


def test_logits_and_every_block_equal_kerashubs(golden, network):
    model = build_model(network.model, 21)

    @jax.jit
    def run(variables, images):
        (logits, _), state = model.apply(
            variables, images, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return logits, state["intermediates"]

    logits, outputs = run(network.variables, formula.uniform("image64", (1, 64, 64, 3), 0, 2))
    assert_logits(logits, golden, 64)
    captured = {path.removesuffix("/__call__"): value[0] for path, value in flat(outputs).items()}
    ours = {
        "spatial_pyramid_pooling": "aspp",
        "decoder_relu": "decoder/low_level",
        "segmentation_head_relu": "decoder",
    }
    for stack, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            ours[f"stack{stack}_block{block}_out"] = f"backbone/stage{stack + 1}_block{block + 1}"
    theirs = {name.partition("/")[2]: value for name, value in golden.items() if name.startswith("endpoint/")}
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        value = captured[ours[name]]
        value = value[0] if isinstance(value, tuple) else value  # a block's output and its residual branch
        value = sample(value, 2)[..., :: value.shape[-1] // 16]
        # float32 sums in another order, through up to 50 layers
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_other_files_of_the_same_network_give_the_same_variables(tmp_path, golden, layout, values, network):
    with h5py.File(tmp_path / "unnamed.weights.h5", "w") as file:
        fill_weights(file, layout, values, record_names=False)
    config = json.loads(str(golden["config"]))
    write_archive(tmp_path / "model.keras", config, layout, values)
    for name in ("unnamed.weights.h5", "model.keras"):
        other = kerashub.load(tmp_path / name)
        assert other.model.to_dict() == network.model.to_dict()
        jax.tree.map(np.testing.assert_array_equal, other.variables, network.variables)

    values = dict.fromkeys(values, 0.5)
    fields = config["config"]["backbone"]["config"]
    fields["dilation_rates"] = [3, 6, 9]
    write_archive(tmp_path / "rates.keras", config, layout, values)
    assert kerashub.load(tmp_path / "rates.keras").model.atrous_rates == (3, 6, 9)
    fields["spatial_pyramid_pooling_key"] = "P4"
    write_archive(tmp_path / "level.keras", config, layout, values)
    with pytest.raises(UserError, match=r"levels \('P2', 'P4'\)"):
        kerashub.load(tmp_path / "level.keras")


@pytest.mark.parametrize("depth", ["18", "50", "101"])
def test_encoders_are_read_by_name_and_by_place(tmp_path, golden, depth):
    layout = json.loads(str(golden["encoder_layouts"]))[depth]
    values = {path: float(i) for i, (*_, path, _) in enumerate(layout)}
    leaves = []
    for record_names in (True, False):
        with h5py.File(tmp_path / f"{record_names}.weights.h5", "w") as file:
            fill_weights(file, layout, values, record_names=record_names)
        encoder = kerashub.load(tmp_path / f"{record_names}.weights.h5")
        leaves.append({path: value.flat[0] for path, value in flat(encoder.variables).items()})
    assert encoder.label_set is None
    assert encoder.model.backbone == f"resnet{depth}_v1"
    assert encoder.model.input_mean == base_config().model.input_mean
    assert leaves[0] == leaves[1]
    assert sorted(leaves[0].values()) == sorted(values.values())
    block, last = values["stack2_block1_2_conv/kernel"], values["stack1_block0_0_bn/moving_variance"]
    assert leaves[0]["params/backbone/stage3_block2/conv2/kernel"] == block
    assert leaves[0]["batch_stats/backbone/stage2_block1/shortcut_norm/var"] == last


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("segmentation_output", "has no classifier or no low-level features"),
        ("stack1_block2_1_bn", "has 52 BatchNorms in its encoder, which does not match a KerasHub ResNet v1"),
        ("aspp_conv_3", "aspp_conv_3/kernel is missing in the file"),
    ],
)
def test_other_networks_are_refused(tmp_path, layout, missing, message):
    layout = [row for row in layout if row[1] != missing]
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        fill_weights(file, layout, {path: 0.5 for *_, path, _ in layout})
    with pytest.raises(UserError, match=message):
        kerashub.load(tmp_path / "model.weights.h5")
