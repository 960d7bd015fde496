"""Imported SegFormers of transformers, segmentation_models.pytorch, NVlabs and KerasHub equal the originals."""

import json
import pathlib
import re

import h5py
import jax
import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.errors import UserError
from deeplab_jax.models import build_model
from deeplab_jax.pretrained.importers import kerashub, nvlabs, smp, transformers
from tests.goldens import formula
from tests.pretrained.importers.keras_files import fill_weights, write_archive
from tests.pretrained.importers.torch_networks import GOLDENS, Golden, assert_equal, compute

CONFIG = {"model_type": "segformer", "id2label": {str(i): f"thing {i}" for i in range(5)}}


@pytest.fixture(scope="module")
def hugging_face():
    return Golden("transformers")


@pytest.fixture(scope="module")
def smp_golden():
    return Golden("smp_segformer")


def zeros(golden, network):
    return {name: np.zeros(shape, np.float32) for name, shape in golden.shapes(network).items()}


# ---- Hugging Face transformers ----


def test_logits_and_every_block_equal_transformers(hugging_face):
    network = transformers.from_state_dict(hugging_face.state_dict("b0"))
    assert (network.model.backbone, network.model.head) == ("mit_b0", "segformer")
    assert network.model.layer_norm_epsilons == (1e-5,) * 4
    assert (network.protocol, network.image_size) == ("whole", None)
    wanted = hugging_face.samples("b0")
    computed = compute(network, wanted, "b0", (65, 97))
    assert_equal(computed, wanted)
    np.testing.assert_allclose(computed["logits"], wanted["logits"], rtol=0, atol=1e-4)


def test_names_of_files_are_those_of_earlier_versions(hugging_face):
    saved = transformers.from_state_dict(zeros(hugging_face, "saved_b0"))
    assert saved.label_set.num_classes == 5
    assert saved.report == transformers.from_state_dict(zeros(hugging_face, "b0")).report
    assert "0 missing, 0 unused" in saved.report[0]


@pytest.mark.parametrize("network", ["saved_mit_b0", "saved_mit_b0_encoder"])
def test_networks_without_a_decoder_become_backbones(network, hugging_face, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(zeros(hugging_face, network), path)
    (tmp_path / "config.json").write_bytes(hugging_face.outputs[f"{network}:config"].tobytes())
    for source in (path, tmp_path):
        imported = transformers.load(source)
        assert (imported.model.backbone, imported.label_set) == ("mit_b0", None)
        assert set(imported.variables) == {"params"}


def write_folder(folder, golden, *, shards=1, **config):
    arrays = zeros(golden, "saved_b0")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    if shards == 1:
        safetensors.numpy.save_file(arrays, folder / "model.safetensors")
        return
    places = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(arrays))}
    for file in set(places.values()):
        part = {name: arrays[name] for name, place in places.items() if place == file}
        safetensors.numpy.save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_names_classes_sizes_and_normalization(shards, hugging_face, tmp_path):
    write_folder(tmp_path, hugging_face, shards=shards, hidden_act="gelu_new", drop_path_rate=0.2)
    preprocessor = {"size": {"height": 256, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    network = transformers.load(tmp_path)
    assert network.label_set.class_names == tuple(f"thing {i}" for i in range(5))
    assert (network.protocol, network.image_size) == ("squeeze", (256, 384))
    model = network.model
    assert (model.gelu, model.drop_path, model.classifier_dropout) == ("tanh", 0.2, 0.1)
    assert (model.input_mean, model.input_std) == ((127.5,) * 3, (63.75,) * 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mask2former"}, "describes a model of type 'mask2former'; only segformer is supported"),
        ({"num_attention_heads": [1, 2, 4, 8]}, r"num_attention_heads=\[1, 2, 4, 8\]; only \[1, 2, 5, 8\]"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; only gelu, gelu_new, gelu_pytorch_tanh are supported"),
        ({"id2label": {"0": "sky"}}, "names 1 classes, but the classifier has 5"),
    ],
)
def test_other_configs_are_refused_in_one_line(config, message, hugging_face, tmp_path):
    write_folder(tmp_path, hugging_face, **config)
    with pytest.raises(UserError, match=message) as caught:
        transformers.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_incomplete_folders_are_refused_in_one_line(hugging_face, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match="has neither model.safetensors nor pytorch_model.bin"):
        transformers.load(tmp_path)
    index = {"weight_map": {"a": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names the file '../model.safetensors', which is outside its folder"):
        transformers.load(tmp_path)


def test_other_networks_are_refused_in_one_line(hugging_face, smp_golden):
    with pytest.raises(UserError, match="the file is not a SegFormer of transformers; it has encoder.patch_embed1"):
        transformers.from_state_dict(zeros(smp_golden, "mit_b2"))
    arrays = zeros(hugging_face, "b0")
    arrays |= {name: value[:16] for name, value in arrays.items() if name.endswith("1.patch_embeddings.proj.weight")}
    with pytest.raises(UserError, match=r"no Mix Transformer has \(32, 16, 160, 256\) channels and \(2, 2, 2, 2\)"):
        transformers.from_state_dict(arrays)


# ---- segmentation_models.pytorch and NVlabs ----


def as_nvlabs(arrays):
    """The names of NVlabs: those of smp's encoder with another prefix, and a decoder of its own."""
    renamed = {}
    for name, value in arrays.items():
        name = re.sub(r"^encoder\.", "backbone.", name)
        name = re.sub(
            r"^decoder\.mlp_stage\.(\d)\.linear", lambda match: f"decode_head.linear_c{4 - int(match[1])}.proj", name
        )
        name = name.replace("decoder.fuse_stage.0", "decode_head.linear_fuse.conv")
        name = name.replace("decoder.fuse_stage.1", "decode_head.linear_fuse.bn")
        renamed[name.replace("segmentation_head.0", "decode_head.linear_pred")] = value
    return renamed | {"decode_head.conv_seg.weight": np.zeros((5, 256, 1, 1), np.float32)}


def test_logits_and_every_block_equal_smps(smp_golden):
    network = smp.from_state_dict(smp_golden.state_dict("mit_b0"))
    assert network.model.layer_norm_epsilons == (1e-6, 1e-6, 1e-5, 1e-5)
    assert network.report[-1] == "16 arrays split into keys and values"
    wanted = smp_golden.samples("mit_b0")
    computed = compute(network, wanted, "mit_b0", (64, 96))
    assert_equal(computed, wanted)
    np.testing.assert_allclose(computed["logits"], wanted["logits"], rtol=0, atol=1e-4)


def test_nvlabs_names_mean_the_same_layers(smp_golden):
    arrays = smp_golden.state_dict("mit_b0")
    theirs, ours = smp.from_state_dict(arrays), nvlabs.from_state_dict(as_nvlabs(arrays))
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    assert not ours.model.align_corners
    assert any("classifier that the network does not use" in line for line in ours.report)
    encoder = {name.removeprefix("backbone."): value for name, value in as_nvlabs(arrays).items() if "backbone" in name}
    backbone = nvlabs.from_state_dict(encoder | {"head.weight": np.zeros((1000, 256), np.float32)})
    assert backbone.label_set is None
    jax.tree.map(
        np.testing.assert_array_equal, backbone.variables["params"]["backbone"], theirs.variables["params"]["backbone"]
    )


def test_every_array_of_other_encoders_is_accounted_for(smp_golden):
    assert smp.from_state_dict(zeros(smp_golden, "mit_b2")).model.decoder_channels == 768
    binary = smp.from_state_dict(zeros(smp_golden, "mit_b5"))
    assert (binary.model.backbone, binary.label_set.class_names) == ("mit_b5", ("background", "foreground"))
    with pytest.raises(UserError, match="the encoder of this Segformer is not supported .*; it has encoder.conv1"):
        smp.from_state_dict(zeros(smp_golden, "resnet34"))


def test_other_networks_than_nvlabs_are_refused_in_one_line(smp_golden):
    with pytest.raises(UserError, match="the file is not a SegFormer of NVlabs; it has encoder.patch_embed1"):
        nvlabs.from_state_dict(zeros(smp_golden, "mit_b2"))
    arrays = as_nvlabs(zeros(smp_golden, "mit_b0"))
    arrays["backbone.block1.0.attn.kv.weight"] = np.zeros((63, 32), np.float32)
    with pytest.raises(UserError, match=r"kv.weight has shape \(63, 32\), which cannot be split into keys and values"):
        nvlabs.from_state_dict(arrays)


# ---- KerasHub ----


@pytest.fixture(scope="module")
def keras_golden():
    with np.load(GOLDENS / "kerashub_segformer.npz") as arrays:
        return dict(arrays)


def keras_values(layout):
    return {path: formula.weight(path, shape, is_norm=False) for *_, path, shape in layout}


def sample(array, count=10):
    """Samples pixels as make_kerashub.py does."""
    rows, columns = (np.linspace(0, extent - 1, min(count, extent)).astype(int) for extent in array.shape[1:3])
    return np.asarray(array)[:, rows][:, :, columns]


def test_logits_and_every_stage_equal_kerashubs(keras_golden, tmp_path):
    layout = json.loads(str(keras_golden["layout"]))
    path = tmp_path / "model.keras"
    write_archive(path, json.loads(str(keras_golden["config"])), layout, keras_values(layout))
    network = kerashub.load(path)
    assert network.model.gelu == "tanh"
    assert network.model.layer_norm_epsilons == (1e-6, 1e-5, 1e-5, 1e-5)
    assert (network.protocol, network.image_size) == ("squeeze", (96, 96))
    model = build_model(network.model, 5)
    # KerasHub takes normalized images.
    images = formula.uniform("segformer", (1, 96, 96, 3), -2, 2)
    images = images * np.float32(network.model.input_std) + np.float32(network.model.input_mean)
    logits, endpoints = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(
        network.variables, images
    )
    np.testing.assert_allclose(sample(logits), keras_golden["logits"], rtol=0, atol=1e-4)
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        wanted = keras_golden[f"endpoint/{stage}"]
        assert wanted.std() > 0.1
        np.testing.assert_allclose(sample(endpoints[stage], 3)[..., ::8], wanted, rtol=0, atol=1e-4)


def test_kerashubs_encoders_become_backbones(keras_golden, tmp_path):
    layout = json.loads(str(keras_golden["encoder_layout"]))
    path = pathlib.Path(tmp_path) / "model.weights.h5"
    with h5py.File(path, "w") as file:
        fill_weights(file, layout, keras_values(layout))
    network = kerashub.load(path)
    assert (network.model.backbone, network.label_set) == ("mit_b0", None)
    assert network.report[0].endswith("0 missing, 0 unused")
