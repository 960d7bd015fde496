"""The configs of rows: they build networks, their commands describe them, their costs are the published ones."""

import math
import shlex

import pytest
from ml_collections import ConfigDict

from deeplab_jax import papers
from deeplab_jax.cli.config_flags import parse_config, split_arguments
from deeplab_jax.config import differences, load_config, validate
from deeplab_jax.data import dataset_names
from deeplab_jax.errors import UserError
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.papers import configs
from deeplab_jax.pretrained import PretrainedNetwork

REPRODUCIBLE = [row for row in papers.list_rows() if row.cannot is None]

# One row per network: the others differ in their data, protocol or training.
NETWORKS = ("v3-3-mg121-block7", "v3plus-2-conv2-conv3", "segformer-ade20k-b0", "zoo-voc-mobilenet-v2")


def of_all(ids):
    """All rows, of which the default suite takes only those with these ids."""
    return [
        pytest.param(row.id, marks=() if row.id in ids else pytest.mark.slow, id=row.id) for row in papers.list_rows()
    ]


def test_every_row_has_valid_configs_of_the_data_it_names():
    for row in papers.list_rows():
        training = papers.training_config(row)
        validate(training)
        evaluation = papers.evaluation_config(row)
        validate(evaluation)
        assert training.train.init_from == row.init
        assert training.data.name in dataset_names()
        assert training.data.name == row.data, row.id


def test_networks_of_research_deeplab_double_the_learning_rate_of_biases():
    """research/deeplab/utils/train_utils.py, which the authors of these papers trained with."""
    theirs = {"v3", "v3plus", "zoo"}
    for row in papers.list_rows():
        multiplier = papers.training_config(row).optimizer.bias_multiplier
        is_theirs = row.paper in theirs or row.config.startswith("lraspp_mobilenet_v3_cityscapes")
        assert multiplier == (2.0 if is_theirs else 1.0), row.id


@pytest.mark.parametrize("name", of_all(NETWORKS))
def test_every_row_builds_its_networks(name):
    row = papers.find_row(name)
    trained = _shapes(papers.training_config(row), row.classes)
    assert _shapes(papers.evaluation_config(row), row.classes) == trained


def _shapes(config: ConfigDict, num_classes: int):
    return abstract_variables(build_model(config.model, num_classes))


def test_evaluation_starts_from_the_training_and_leaves_it_alone():
    row = papers.find_row("v3plus-3-16-8-decoder-scales-flip")
    training = papers.training_config(row)
    training.data.data_dir = "elsewhere"
    evaluation = papers.evaluation_config(row, training)
    changed = differences(training, evaluation, groups=("model", "data", "eval"))
    assert set(changed) == {"model.output_stride", "eval.scales", "eval.flip"}
    assert (training.model.output_stride, evaluation.model.output_stride) == (16, 8)
    assert evaluation.eval.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert evaluation.data.data_dir == "elsewhere"


@pytest.mark.parametrize("row", REPRODUCIBLE[::9], ids=lambda row: row.id)
def test_commands_describe_the_configs(row):
    prepare, train, evaluate, *of_weights = (shlex.split(command) for command in papers.row_commands(row))
    assert prepare[:4] == ["deeplab-jax", "data", "prepare", papers.training_config(row).data.name]
    training = parse_config(split_arguments(train)[0])
    assert _same(training, papers.training_config(row))
    evaluation = parse_config(split_arguments(evaluate)[0], base=training)
    assert _same(evaluation, papers.evaluation_config(row))
    assert train[-1] == evaluate[3] == f"runs/{row.id}"
    assert bool(of_weights) == (row.weights is not None)


def _same(one: ConfigDict, other: ConfigDict) -> bool:
    return differences(one, other, groups=tuple(one)) == {}


def test_published_weights_keep_their_network_and_get_the_protocol():
    row = papers.find_row("zoo-voc-mobilenet-v2-os8-scales-flip")
    model = load_config("quickstart").model
    network = PretrainedNetwork(model, {}, None, image_size=(65, 65))
    config = papers.weights_config(row, network)
    assert (config.model.backbone, config.model.output_stride) == ("resnet10_v1_slim", 8)
    assert (config.data.name, config.data.eval_split, config.eval.flip) == ("voc2012_segmentation", "val", True)
    assert len(config.eval.scales) == 6
    assert config.eval.image_size == (65, 65)
    any_size = configs.weights_config(row, PretrainedNetwork(model, {}, None))
    assert any_size.eval.image_size == (513, 513)


# ---- Costs ----


def test_costs_add_up_the_views():
    row = papers.find_row("zoo-voc-mobilenet-v2-os8-scales-flip")
    costs = papers.row_costs(row)
    sizes = [(257, 257), (385, 385), (513, 513), (641, 641), (769, 769), (897, 897)]
    assert costs.views == tuple(size for size in sizes for _ in range(2))
    single = papers.row_costs(papers.find_row("zoo-voc-mobilenet-v2"))
    assert single.views == ((513, 513),)
    assert single.multiply_adds == pytest.approx(2.75, rel=0.005)  # published with two decimals
    assert costs.parameters == single.parameters


def test_a_mirrored_view_costs_as_much_as_the_view():
    config = load_config("quickstart")
    plain = papers.config_costs(config, 6)
    config.eval.flip = True
    mirrored = papers.config_costs(config, 6)
    assert (mirrored.multiply_adds, mirrored.padded) == (2 * plain.multiply_adds, 2 * plain.padded)


# Published with two decimals: 0.88 can be 1.3 % off. At stride 16 with the decoder, the paper has 1.4 less than at the
# other strides; its figures at six scales agree with the count.
BOUNDS = {"zoo-voc-mobilenet-v2-05": 0.014, "zoo-8bit-mobilenet-v2-05": 0.014} | dict.fromkeys(
    ("v3plus-3-16-16-decoder", "v3plus-3-32-16-decoder"), 0.014
)
# More than twice what is counted here, and nobody states how it was counted.
UNEXPLAINED = ("zoo-cityscapes-mobilenet-v3-large", "zoo-cityscapes-mobilenet-v3-small")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row.id, id=row.id, marks=pytest.mark.slow)
        for row in REPRODUCIBLE
        if row.multiply_adds is not None and "eval.scales" not in row.evaluate and row.id not in UNEXPLAINED
    ],
)
def test_multiply_adds_are_the_published_ones(name):
    row = papers.find_row(name)
    costs = papers.row_costs(row)
    assert costs.padded == pytest.approx(row.multiply_adds, rel=BOUNDS.get(name, 0.0036))
    assert costs.multiply_adds <= costs.padded


@pytest.mark.slow
def test_multiply_adds_of_six_scales_are_the_published_ones():
    row = papers.find_row("v3plus-3-16-16-decoder-scales")
    assert papers.row_costs(row).padded == pytest.approx(row.multiply_adds, rel=0.001)


@pytest.mark.parametrize(
    "name",
    [pytest.param(row.id, id=row.id, marks=pytest.mark.slow) for row in REPRODUCIBLE if row.parameters is not None],
)
def test_parameters_are_the_published_ones(name):
    row = papers.find_row(name)
    decimals = len(f"{row.parameters:g}".partition(".")[2])
    parameters = papers.row_costs(row).parameters
    if name.startswith("segformer-cityscapes"):  # the paper states one count, that of ADE20K's 150 classes
        channels = papers.training_config(row).model.decoder_channels
        parameters += (150 - 19) * (channels + 1) / 1e6
    assert round(parameters, decimals) == row.parameters


# ---- Data ----


def test_missing_data_is_an_error_that_says_how_to_prepare_it(tmp_path):
    row = papers.find_row("v3-6-os16")
    config = papers.training_config(row)
    config.data.data_dir = str(tmp_path)
    message = (
        "row v3-6-os16 needs voc2012_segmentation, which is not prepared; run `deeplab-jax data prepare "
        f"voc2012_segmentation --sbd-source benchmark.tgz --data-dir {tmp_path}`"
    )
    with pytest.raises(UserError) as error:
        papers.check_data(row, config, "trainaug")
    assert str(error.value) == message


def test_data_sets_on_request_are_explained(tmp_path):
    row = papers.find_row("v3-12-os16")
    config = papers.training_config(row)
    config.data.data_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"cityscapes, which is not prepared; download it from its publisher, and run"):
        papers.check_data(row, config, "train")


def test_missing_splits_are_named(monkeypatch):
    row = papers.find_row("v3-6-os16")
    config = papers.training_config(row)
    monkeypatch.setattr("deeplab_jax.data.split_names", lambda name, *, data_dir: ["train", "val"])
    with pytest.raises(UserError, match="'trainaug' of voc2012_segmentation, .* prepared; run .*--sbd-source"):
        papers.check_data(row, config, "trainaug")
    with pytest.raises(UserError, match="'test' of voc2012_segmentation, which is not prepared; it has train, val"):
        papers.check_data(row, config, "val+test")
    papers.check_data(row, config, "train+val")


def test_protocols_are_described():
    text = papers.describe_protocol(papers.find_row("v3plus-3-16-8-decoder-scales-flip"))
    assert text == (
        "voc2012_segmentation val, 1,449 images; output stride 8; protocol whole at 513x513; scales 0.5, 0.75, 1, "
        "1.25, 1.5, 1.75; flipped too"
    )
    assert papers.describe_protocol(papers.find_row("v3-12-os16")).startswith("cityscapes val, 500")
    text = papers.describe_protocol(papers.find_row("segformer-cityscapes-b0"))
    assert text == "cityscapes val, 500 images; output stride 32; protocol windows at 1024x1024; one scale"


def test_segformer_is_scored_as_its_authors_do():
    """NVlabs: images of ADE20K scaled to (2048, 512) and aligned to 32; windows on Cityscapes every 768 pixels."""
    protocols = {name: papers.evaluation_config(papers.find_row(f"segformer-{name}-b0-scales")).eval
                 for name in ("ade20k", "cityscapes", "mmseg-ade20k", "mmseg-ade20k-aligned")}  # fmt: skip
    assert all(len(values.scales) == 6 and values.flip for values in protocols.values())
    for name, multiple in (("ade20k", 32), ("mmseg-ade20k", 1), ("mmseg-ade20k-aligned", 32)):
        values = protocols[name]
        assert (values.protocol, values.scale_to, values.size_multiple) == ("keep_ratio", (512, 2048), multiple)
    values = protocols["cityscapes"]
    assert (values.protocol, values.window, values.window_stride) == ("windows", (1024, 1024), (768, 768))
    assert values.window_average == "logits"


# ---- Comparison ----


def test_scores_are_compared_in_percent():
    row = papers.find_row("keras-presets-kerascv")
    iou, accuracy = papers.compare(row, {"mean_iou": 0.65, "pixel_accuracy": None})
    assert (iou.metric, iou.measured, iou.published) == ("mean_iou", 65.0, 63.91)
    assert math.isclose(iou.difference, 1.09, abs_tol=1e-9)
    assert (accuracy.measured, accuracy.published, accuracy.difference) == (None, 89.34, None)
    unpublished = papers.find_row("zoo-mobile-mobilenet-v2-05-257")
    (only,) = papers.compare(unpublished, {"mean_iou": 0.64})
    assert (only.published, only.difference) == (None, None)
