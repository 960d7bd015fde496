"""`from_preset`, and what evaluation and prediction make of a pretrained network."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.evaluator import evaluate_pretrained, evaluate_workdir
from deeplab_jax.pretrained import FORMATS, bundle, from_preset, import_file, load, preset_config


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The trained network as a folder of the native format."""
    path = tmp_path_factory.mktemp("presets") / "net"
    bundle.save(load(trained), path)
    return path


@pytest.fixture(scope="module")
def backbone_folder(trained, tmp_path_factory):
    """Its backbone alone."""
    network = load(trained)
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in network.variables.items()}
    path = tmp_path_factory.mktemp("presets") / "backbone"
    bundle.save(dataclasses.replace(network, variables=backbone, label_set=None), path)
    return path


def listening() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=1000), text


def test_a_preset_is_a_module_and_its_variables(folder, trained):
    console, text = listening()
    model, variables = deeplab_jax.from_preset(folder, console=console)
    assert model.num_classes == 6
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, load(trained).variables)))
    logits, endpoints = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        variables, np.zeros((1, 32, 32, 3), np.uint8)
    )
    assert logits.shape == (1, 32, 32, 6)
    assert "aspp" in endpoints
    assert text.getvalue() == ""


def test_other_classes_begin_a_new_classifier_and_say_so(folder, trained):
    console, text = listening()
    model, variables = from_preset(folder, num_classes=3, console=console)
    assert (model.num_classes, variables["params"]["classifier"]["kernel"].shape[-1]) == (3, 3)
    expected = load(trained).variables["params"]
    for part in ("backbone", "aspp", "decoder"):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables["params"][part], expected[part])))
    assert float(np.std(variables["params"]["classifier"]["kernel"])) > 0
    assert text.getvalue().strip().endswith("newly initialized: classifier")


def test_a_backbone_needs_the_number_of_classes(backbone_folder, trained):
    with pytest.raises(UserError, match="backbone is a backbone without classes; give num_classes$"):
        from_preset(backbone_folder)
    console, text = listening()
    model, variables = from_preset(backbone_folder, 4, console=console)
    assert model.num_classes == 4
    expected = load(trained).variables["params"]["backbone"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables["params"]["backbone"], expected)))
    assert text.getvalue().strip().endswith("newly initialized: aspp, classifier, decoder")


def test_fields_of_the_model_can_be_changed(folder):
    model, _ = from_preset(folder, output_stride=8, atrous_rates=(4,))
    assert (model.output_stride, model.atrous_rates) == (8, (4,))
    with pytest.raises(UserError, match="config field model.output_strid does not exist; did you mean output_stride"):
        from_preset(folder, output_strid=8)
    with pytest.raises(UserError, match="^the networks differ: "):
        from_preset(folder, aspp_channels=16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplab_v3_plus_resnet50_pascalvocc", "did you mean deeplab_v3_plus_resnet50_pascalvoc"),
        ("runs/none", "runs/none is no folder of a pretrained network"),
    ],
)
def test_what_is_not_there_is_named(name, message):
    with pytest.raises(UserError, match=message):
        from_preset(name)


def test_a_preset_that_cannot_be_had_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="classification-v2-notop.h5.* put it at .*cache/classification-v2-notop.h5"):
        from_preset("resnet50_v2_imagenet", 21, console=Console(quiet=True))


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="format 'torchvison' does not exist; did you mean torchvision"):
        import_file(tmp_path / "x.pth", "torchvison")


def test_a_file_that_is_not_there_is_named_in_every_format(tmp_path):
    for file_format in FORMATS:
        with pytest.raises(UserError, match="none.bin"):
            import_file(tmp_path / "none.bin", file_format)


def test_a_pretrained_network_scores_as_its_run_did(folder, trained, workdir):
    network = load(folder)
    config = preset_config(network)
    config.update_from_flattened_dict({"data.name": "synthetic", "data.num_examples": 16, "mesh.data": 1})
    assert (config.eval.protocol, config.data.image_size) == ("guide", (32, 32))
    expected = evaluate_workdir(workdir)
    scores = evaluate_pretrained(network, config=config)
    for name in ("mean_iou", "pixel_accuracy", "num_pixels", "num_images", "per_class_iou"):
        assert scores[name] == expected[name]
    # The batches have other sizes, whose sums round differently in float32.
    assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    config.data.name = "camvid"
    with pytest.raises(UserError, match="camvid is not prepared"):
        evaluate_pretrained(network, config=config)


def test_a_backbone_alone_neither_scores_nor_predicts(backbone_folder):
    network = load(backbone_folder)
    config = preset_config(network)
    with pytest.raises(UserError, match="a resnet10_v1_slim backbone alone has no classes to score"):
        evaluate_pretrained(network, config=config)
    with pytest.raises(UserError, match="a resnet10_v1_slim backbone alone has no classes to predict"):
        deeplab_jax.Predictor.from_preset(backbone_folder)


def test_a_predictor_of_a_preset_labels_as_that_of_its_run(folder, trained):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    (expected,) = deeplab_jax.Predictor.from_workdir(trained)([image])
    (labels,) = deeplab_jax.Predictor.from_preset(folder)([image])
    np.testing.assert_array_equal(labels, expected)
