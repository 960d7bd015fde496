"""`from_pretrained` by name and path, and evaluation and prediction with a pretrained network."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained import (
    FORMATS,
    bundle,
    from_pretrained,
    import_file,
    load,
    preset_config,
    register_format,
)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The trained network, saved to a folder."""
    path = tmp_path_factory.mktemp("presets") / "net"
    bundle.save(load(trained), path)
    return path


@pytest.fixture(scope="module")
def backbone_folder(trained, tmp_path_factory):
    """Its backbone, saved to a folder."""
    network = load(trained)
    backbone = {kind: {"backbone": tree["backbone"]} for kind, tree in network.variables.items()}
    path = tmp_path_factory.mktemp("presets") / "backbone"
    bundle.save(dataclasses.replace(network, variables=backbone, label_set=None), path)
    return path


def test_a_pretrained_network_is_a_module_and_its_variables(folder, trained, caplog):
    model, variables = deeplab_jax.from_pretrained(folder)
    assert model.num_classes == 6
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, load(trained).variables)))
    logits, endpoints = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        variables, np.zeros((1, 32, 32, 3), np.uint8)
    )
    assert logits.shape == (1, 32, 32, 6)
    assert "aspp" in endpoints
    assert not caplog.messages


def test_other_classes_initialize_a_new_classifier_with_a_warning(folder, trained, caplog):
    model, variables = from_pretrained(folder, num_classes=3)
    assert (model.num_classes, variables["params"]["classifier"]["kernel"].shape[-1]) == (3, 3)
    expected = load(trained).variables["params"]
    for part in ("backbone", "aspp", "decoder"):
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables["params"][part], expected[part])))
    assert float(np.std(variables["params"]["classifier"]["kernel"])) > 0
    assert [message.rpartition("; ")[2] for message in caplog.messages] == ["newly initialized: classifier"]


def test_a_backbone_needs_the_number_of_classes(backbone_folder, trained, caplog):
    with pytest.raises(UserError, match="backbone is a backbone without classes; pass num_classes$"):
        from_pretrained(backbone_folder)
    model, variables = from_pretrained(backbone_folder, 4)
    assert model.num_classes == 4
    expected = load(trained).variables["params"]["backbone"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables["params"]["backbone"], expected)))
    assert caplog.messages[-1].endswith("newly initialized: aspp, classifier, decoder")


def test_fields_of_the_model_can_be_changed(folder):
    model, _ = from_pretrained(folder, output_stride=8, atrous_rates=(4,))
    assert (model.output_stride, model.atrous_rates) == (8, (4,))
    with pytest.raises(UserError, match="config field model.output_strid does not exist; did you mean output_stride"):
        from_pretrained(folder, output_strid=8)
    with pytest.raises(UserError, match="^the networks differ: "):
        from_pretrained(folder, aspp_channels=16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deeplab_v3_plus_resnet50_pascalvocc", "did you mean deeplab_v3_plus_resnet50_pascalvoc"),
        (
            "runs/none",
            "runs/none does not exist; expected the name of a preset, a saved network, a workdir or hf://owner/name$",
        ),
    ],
)
def test_unknown_names_and_missing_folders_are_named(name, message):
    with pytest.raises(UserError, match=message):
        from_pretrained(name)


def test_a_preset_that_cannot_be_downloaded_tells_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="classification-v2-notop.h5.* put it at .*cache/classification-v2-notop.h5"):
        from_pretrained("resnet50_v2_imagenet", 21)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="format 'torchvison' does not exist; did you mean torchvision"):
        import_file(tmp_path / "x.pth", "torchvison")


def test_a_missing_file_is_named_in_every_format(tmp_path):
    for file_format in FORMATS:
        with pytest.raises(UserError, match="none.bin"):
            import_file(tmp_path / "none.bin", file_format)


def test_formats_are_an_open_registry(tmp_path, trained, monkeypatch):
    monkeypatch.setattr("deeplab_jax.pretrained.formats.FORMATS", dict(FORMATS))
    register_format("pointer", lambda path: load(pathlib.Path(path.read_text())), description="the path of a workdir")
    (tmp_path / "network.txt").write_text(str(trained))
    assert import_file(tmp_path / "network.txt", "pointer").label_set.num_classes == 6
    with pytest.raises(ValueError, match="format 'timm' is already registered"):
        register_format("timm", load)


def test_a_file_is_not_a_network(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match="weights.pth is a file; run `deeplab-jax convert` to import it; expected"):
        load(tmp_path / "weights.pth")


def test_networks_describe_themselves(folder, backbone_folder):
    assert repr(load(folder)) == "PretrainedNetwork(resnet10_v1_slim, 6 classes, 0.7M parameters, guide 32x32)"
    assert repr(load(backbone_folder)).startswith("PretrainedNetwork(resnet10_v1_slim, backbone only, ")


def test_a_saved_network_has_the_scores_of_its_run(folder, workdir):
    config = preset_config(load(folder))
    config.update_from_flattened_dict({"data.name": "synthetic", "data.num_examples": 16, "mesh.data": 1})
    assert (config.eval.protocol, config.data.image_size) == ("guide", (32, 32))
    expected = deeplab_jax.evaluate(workdir)
    scores = deeplab_jax.evaluate(folder, config=config)
    for name in ("mean_iou", "pixel_accuracy", "num_pixels", "num_images", "per_class_iou"):
        assert scores[name] == expected[name]
    # Batches of other sizes round differently in float32.
    assert scores["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    config.data.name = "camvid"
    with pytest.raises(UserError, match="camvid is not prepared"):
        deeplab_jax.evaluate(folder, config=config)


def test_a_backbone_can_neither_be_evaluated_nor_predict(backbone_folder):
    with pytest.raises(UserError, match="resnet10_v1_slim.* backbone"):
        deeplab_jax.evaluate(backbone_folder)
    with pytest.raises(UserError, match="^resnet10_v1_slim is a backbone without classes; fine-tune it before"):
        deeplab_jax.Predictor.from_pretrained(backbone_folder)


def test_a_saved_network_predicts_the_labels_of_its_run(folder, trained):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    expected = deeplab_jax.Predictor.from_pretrained(trained)(image)
    result = deeplab_jax.Predictor.from_pretrained(folder)(image)
    np.testing.assert_array_equal(result.label_map, expected.label_map)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_first(folder, tmp_path, value):
    network = load(folder)
    variables = jax.tree.map(np.array, network.variables)
    variables["params"]["classifier"]["kernel"][0, 0, 3, 1] = value
    variables["params"]["decoder"]["refine1_conv"]["kernel"][0] = value
    bundle.save(dataclasses.replace(network, variables=variables), tmp_path / "net")
    for read in (load, from_pretrained, deeplab_jax.Predictor.from_pretrained, deeplab_jax.evaluate):
        with pytest.raises(
            UserError, match=r"net: weight params/classifier/kernel contains NaN or infinity; the file is"
        ):
            read(tmp_path / "net")
    with pytest.raises(UserError, match="net: weight params/classifier/kernel contains NaN"):
        import_file(tmp_path / "net", "deeplab_jax")


def test_large_finite_weights_are_accepted(folder, tmp_path):
    network = load(folder)
    variables = jax.tree.map(np.array, network.variables)
    variables["params"]["classifier"]["kernel"][:] = np.finfo(np.float32).max  # their sum is infinite
    bundle.save(dataclasses.replace(network, variables=variables), tmp_path / "net")
    assert load(tmp_path / "net").label_set == network.label_set


def test_a_run_that_diverged_is_not_evaluated(workdir):
    from deeplab_jax.workdir.checkpoint import Checkpoints

    with Checkpoints(workdir) as checkpoints:
        variables = jax.tree.map(np.array, checkpoints.saved_variables())
        variables["batch_stats"]["backbone"] = jax.tree.map(
            lambda leaf: leaf * np.nan, variables["batch_stats"]["backbone"]
        )
        checkpoints.save(1000, variables=variables, training={"step": np.asarray(1000)})
    for read in (load, deeplab_jax.evaluate):
        with pytest.raises(UserError, match=r"run: weight batch_stats/backbone/.* contains NaN or infinity"):
            read(workdir)
