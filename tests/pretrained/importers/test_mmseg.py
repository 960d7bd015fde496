"""Imported networks of MMSegmentation equal the originals, block by block, with their auxiliary heads."""

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC
from deeplab_jax.pretrained import import_file
from deeplab_jax.pretrained.importers import mmseg
from tests.pretrained.importers.torch_networks import Golden, assert_equal, compute
from tests.pretrained.readers.torch_writer import Name, Object, Tensor, save

SMALL, LARGE = (97, 161), (512, 512)


@pytest.fixture(scope="module")
def golden():
    return Golden("mmseg")


def samples(golden, network):
    """The samples at the small size, and those at the large size."""
    values = {path: value for path, value in golden.samples(network).items() if path != "config"}
    large = {path.removesuffix("_512"): value for path, value in values.items() if path.endswith("_512")}
    return {path: value for path, value in values.items() if not path.endswith("_512")}, large


def meta(golden, network, key="cfg"):
    return {key: golden.outputs[f"{network}:config"].tobytes().decode()}


def zeros(golden, network):
    return {name: np.zeros(shape, np.float32) for name, shape in golden.shapes(network).items()}


def assert_logits(computed, wanted):
    # float32: random weights drive ResNet-101 to values of 60, and its rounding grows with them. Measured: 9.7e-5.
    np.testing.assert_allclose(computed, wanted, rtol=0, atol=1e-4 * max(1, np.abs(wanted).max() / 10))


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("network", "backbone"),
    [
        ("v3plus_r18", "resnet18_v1c"),
        slow("v3_r18", "resnet18_v1c"),
        slow("v3plus_r50", "resnet50_v1c"),
        slow("v3_r50", "resnet50_v1c"),
        slow("v3plus_r101", "resnet101_v1c"),
        slow("v3_r101", "resnet101_v1c"),
        slow("v3plus_r101_stride16", "resnet101_v1c"),
        slow("v3plus_r18b_aligned", "resnet18_v1b"),
    ],
)
def test_logits_and_every_block_equal_mmsegmentations(network, backbone, golden):
    imported = mmseg.from_state_dict(golden.state_dict(network), meta(golden, network))
    assert imported.model.backbone == backbone
    wanted, _ = samples(golden, network)
    computed = compute(imported, wanted, network, SMALL)
    assert_equal(computed, wanted)
    for path in ("logits", "auxiliary"):
        assert_logits(computed[path], wanted[path])


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [f"{head}_{depth}" for depth in ("r18", "r50", "r101") for head in ("v3plus", "v3")]
)
def test_logits_at_512_pixels_equal_mmsegmentations(network, golden):
    imported = mmseg.from_state_dict(golden.state_dict(network), meta(golden, network))
    _, wanted = samples(golden, network)
    computed = compute(imported, wanted, network, LARGE)
    for path in ("logits", "auxiliary"):
        assert_logits(computed[path], wanted[path])


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        (
            "v3plus_r18",
            {"output_stride": 8, "atrous_rates": (12, 24, 36), "aspp_separable": True, "aspp_channels": 128},
        ),
        ("v3_r50", {"output_stride": 8, "decoder": "none", "aspp_separable": False, "aspp_channels": 512}),
        (
            "v3plus_r101_stride16",
            {"output_stride": 16, "atrous_rates": (6, 12, 18), "multi_grid": (1, 1, 2), "low_level_channels": 48},
        ),
        ("v3plus_r18b_aligned", {"align_corners": True, "auxiliary_channels": 64, "auxiliary_features": "stage3"}),
    ],
)
@pytest.mark.parametrize("key", ["cfg", "config"])  # of mmengine and mmcv
def test_fields_come_from_the_config_in_the_checkpoint(network, fields, key, golden):
    imported = mmseg.from_state_dict(zeros(golden, network), meta(golden, network, key))
    assert {name: imported.model[name] for name in fields} == fields
    assert imported.model.atrous_rates_stride == imported.model.output_stride
    assert not imported.model.spread_converted_units
    assert imported.model.aspp_projection_size == 3
    assert imported.model.classifier_dropout == 0.1
    assert "0 missing, 0 unused" in imported.report[0]
    assert imported.report[-1].startswith("from the config in the file: output stride")


def test_without_a_config_output_stride_8_is_assumed_and_reported(golden):
    imported = mmseg.from_state_dict(zeros(golden, "v3plus_r101"))
    assert (imported.model.output_stride, imported.model.atrous_rates) == (8, (12, 24, 36))
    assert imported.report[-1] == (
        "assumed, since the file contains no config: output stride 8 with rates (12, 24, 36)"
    )
    assert imported.label_set.class_names[:2] == ("class 0", "class 1")


def test_a_training_checkpoint_is_read_as_it_is(golden, tmp_path):
    """With its optimizer, its objects, copies of mmcv's EMA hook, and the classes of the data set."""
    names = [f"thing {i}" for i in range(19)]
    palette = [[i, 2 * i, 3 * i] for i in range(19)]
    arrays = {name: Tensor(array) for name, array in zeros(golden, "v3plus_r18").items()}
    arrays["ema_backbone_stem_0_weight"] = Tensor(np.ones((32, 3, 3, 3), np.float32))
    content = {
        "meta": {"epoch": 3, "dataset_meta": {"classes": tuple(names), "palette": palette}}
        | meta(golden, "v3plus_r18"),
        "state_dict": arrays,
        "ema_state_dict": {"steps": Tensor(np.asarray(3)), "module.a": Tensor(np.ones(1, np.float32))},
        "message_hub": {"log_scalars": {"loss": Object(Name("mmengine.logging.history_buffer", "HistoryBuffer"), ())}},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
    }
    imported = import_file(save(tmp_path / "iter_80000.pth", content), "mmseg")
    assert imported.label_set.class_names == tuple(names)
    assert imported.label_set.palette[2] == (2, 4, 6)
    assert any("copies of mmcv's EMA hook" in line for line in imported.report)
    assert float(imported.variables["params"]["backbone"]["stem_conv1"]["kernel"].max()) == 0


def test_names_and_colors_of_an_mmcv_checkpoint_and_of_one_without_colors(golden):
    arrays = zeros(golden, "v3_r50")
    voc = {"CLASSES": VOC.class_names, "PALETTE": [list(color) for color in VOC.palette]}
    assert mmseg.from_state_dict(arrays, voc).label_set == VOC
    assert mmseg.from_state_dict(arrays, {"CLASSES": VOC.class_names}).label_set == VOC
    with pytest.raises(UserError, match="the class names or colors in the file are not valid"):
        mmseg.from_state_dict(arrays, {"CLASSES": VOC.class_names, "PALETTE": [[0, 0, 300]] * 21})


def test_an_imagenet_checkpoint_is_a_backbone(golden):
    arrays = zeros(golden, "resnet50_v1c") | {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)}
    imported = mmseg.from_state_dict(arrays)
    assert (imported.model.backbone, imported.label_set) == ("resnet50_v1c", None)
    assert "2 skipped (ImageNet classifier): fc.weight, fc.bias" in imported.report


def with_config(text):
    return {"cfg": f"model = dict(backbone=dict({text}), decode_head=dict(dilations=(1, 12, 24, 36)))"}


@pytest.mark.parametrize(
    ("change", "details", "message"),
    [
        (lambda arrays: arrays.pop("decode_head.conv_seg.weight"), {}, "no decode_head.conv_seg .*; it has backbone"),
        (lambda arrays: arrays.pop("decode_head.bottleneck.conv.weight"), {}, "the decode head is not an ASPPHead"),
        (
            lambda arrays: arrays.update({"auxiliary_head.convs.1.conv.weight": np.zeros(1)}),
            {},
            "the auxiliary head is not an FCNHead of one convolution",
        ),
        (
            lambda arrays: arrays.update({"backbone.layer2.0.downsample.2.weight": np.zeros(1)}),
            {},
            "the backbone is not supported",
        ),
        (
            lambda arrays: arrays.update({"decode_head.conv_seg.weight": np.zeros((1, 128, 1, 1))}),
            {},
            "the classifier has one channel, for a sigmoid",
        ),
        (lambda arrays: arrays.update({"extra.weight": np.zeros(1)}), {}, "extra.weight is unused"),
        (
            lambda arrays: None,
            with_config("strides=(1, 2, 1, 1), dilations=(1, 1, 1, 1)"),
            "has strides \\(1, 2, 1, 1\\) and dilations \\(1, 1, 1, 1\\), which are not supported",
        ),
        (lambda arrays: None, with_config("style='caffe'"), "has the style 'caffe'"),
        (lambda arrays: None, with_config("strides='a'"), "has 'a' where integers are expected"),
        (
            lambda arrays: None,
            with_config("strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2)"),
            "multi_grid=\\(1, 2\\) at dilation 4 is not supported",
        ),
        (
            lambda arrays: None,
            {"cfg": "model = dict(data_preprocessor=dict(bgr_to_rgb=False))"},
            "ASPP has the dilations .*which do not match|blue, green, red",
        ),
    ],
)
def test_other_networks_are_refused_in_one_line(change, details, message, golden):
    arrays = zeros(golden, "v3plus_r18")
    change(arrays)
    with pytest.raises(UserError, match=message) as caught:
        mmseg.from_state_dict(arrays, details)
    assert "\n" not in str(caught.value)
