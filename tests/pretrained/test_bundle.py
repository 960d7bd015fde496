"""The format of saved networks: exact round trips, the same bytes every time, and clear errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import deeplab_jax
from deeplab_jax.config import VERSION
from deeplab_jax.data import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC, VOC
from deeplab_jax.pretrained import average, bundle, load, model_card, preset_config


@pytest.fixture(scope="module")
def network(trained):
    return load(trained)


@pytest.fixture
def folder(network, tmp_path):
    bundle.save(network, tmp_path / "net")
    return tmp_path / "net"


def test_a_saved_network_is_loaded_unchanged(network, folder):
    again = load(folder)
    assert again.model.to_dict() == network.model.to_dict()
    assert again.label_set == network.label_set == SYNTHETIC
    assert (again.protocol, again.image_size, again.report) == ("guide", (32, 32), ())
    assert jax.tree.structure(again.variables) == jax.tree.structure(network.variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.variables, network.variables)))
    assert {leaf.dtype for leaf in jax.tree.leaves(again.variables)} == {np.dtype(np.float32)}


def test_saving_twice_gives_the_same_bytes(network, folder, tmp_path):
    bundle.save(load(folder), tmp_path / "twice")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()}


def test_what_changes_the_view_of_an_image_is_saved(network, tmp_path):
    feeding = {"eval.window_stride": (8, 16), "eval.window_average": "probabilities", "data.antialias": True}
    feeding |= {"eval.scales": (0.5, 1.0), "eval.flip": True, "eval.ignored_pixels": "background"}
    windows = dataclasses.replace(network, protocol="windows", image_size=(24, 32), feeding=feeding)
    bundle.save(windows, tmp_path / "net")
    config = preset_config(load(tmp_path / "net"))
    protocol = protocol_for(config)
    assert (protocol.window, protocol.stride, protocol.average) == ((24, 32), (8, 16), "probabilities")
    assert protocol.antialias
    bundle.save(load(tmp_path / "net"), tmp_path / "twice")
    for path in (tmp_path / "net").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()


@pytest.mark.parametrize(
    "feeding",
    [{"train.seed": 1}, {"eval.window_average": "all"}, {"eval.window_stride": 5}, {"eval.scale_to": [0, "a"]}, [1], 5],
)
def test_a_damaged_view_of_images_is_refused(folder, feeding):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"feeding": feeding}))
    with pytest.raises(UserError, match="config.json"):
        load(folder)


def test_the_card_states_what_the_network_takes(network, tmp_path):
    assert "# (N, H, W, 3) RGB, values 0-255" in model_card.render(network)
    model = network.model.copy_and_resolve_references()
    model.in_channels, model.value_range = 5, (0, 65535)
    assert "# (N, H, W, 5), values 0-65535" in model_card.render(dataclasses.replace(network, model=model))


def test_kernels_can_be_saved_as_float16(network, tmp_path):
    bundle.save(network, tmp_path / "half", half=True)
    stored = safetensors.numpy.load_file(tmp_path / "half" / "model.safetensors")
    assert {(value.ndim > 1, value.dtype.name) for value in stored.values()} == {(True, "float16"), (False, "float32")}
    again = load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(again.variables)} == {np.dtype(np.float32)}

    def check(value, expected):
        # float16 has eleven bits: rounding changes values by at most 2^-11; below 2^-14, by half of the smallest step.
        np.testing.assert_allclose(value, expected, rtol=2.0**-11 if expected.ndim > 1 else 0, atol=2.0**-25)

    jax.tree.map(check, again.variables, network.variables)


def test_a_kernel_outside_the_range_of_float16_is_named(network, tmp_path):
    variables = jax.tree.map(np.array, network.variables)
    variables["params"]["classifier"]["kernel"][..., 0] = 1e5
    with pytest.raises(UserError, match="^params/classifier/kernel has values outside the range of float16"):
        bundle.save(dataclasses.replace(network, variables=variables), tmp_path / "half", half=True)


def test_existing_files_are_not_overwritten(network, folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="net exists and is not empty; choose another folder or remove it$"):
        bundle.save(network, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="config.json exists and is not empty"):
        bundle.save(network, folder / "config.json")


# ---- save_pretrained ----


def test_a_model_is_saved_and_loaded_bit_for_bit(trained, tmp_path):
    model, variables = deeplab_jax.from_pretrained(trained, output_stride=8)
    folder = tmp_path / "mine"
    deeplab_jax.save_pretrained(folder, model, variables, SYNTHETIC, protocol="squeeze", image_size=(32, 32))
    loaded_model, loaded_variables = deeplab_jax.from_pretrained(folder)
    assert loaded_model == model
    assert loaded_model.output_stride == 8
    assert jax.tree.structure(loaded_variables) == jax.tree.structure(variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded_variables, variables)))
    predictor = deeplab_jax.Predictor.from_pretrained(folder)
    assert predictor.label_set == SYNTHETIC
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    result = predictor(image, probabilities=True)
    logits, _ = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, image[None])
    np.testing.assert_allclose(result.probabilities, jax.nn.softmax(logits[0], axis=-1), atol=1e-5)


def test_a_protocol_that_does_not_exist_is_refused_before_saving(trained, tmp_path):
    model, variables = deeplab_jax.from_pretrained(trained)
    with pytest.raises(UserError, match="^eval.protocol='squeze' does not exist; did you mean squeeze"):
        deeplab_jax.save_pretrained(tmp_path / "network", model, variables, SYNTHETIC, protocol="squeze")
    assert not (tmp_path / "network").exists()


def test_classes_and_variables_must_fit_the_model(trained, tmp_path):
    model, variables = deeplab_jax.from_pretrained(trained)
    with pytest.raises(UserError, match="^label_set has 21 classes, but the model has 6$"):
        deeplab_jax.save_pretrained(tmp_path / "mine", model, variables, VOC)
    other = model.clone(aspp_channels=16)
    with pytest.raises(UserError, match="^the variables do not fit the model: batch_stats/aspp/.* and .* more$"):
        deeplab_jax.save_pretrained(tmp_path / "mine", other, variables, SYNTHETIC)
    assert not (tmp_path / "mine").exists()


# ---- Damage ----


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "keras"}, 'config.json is not the config of a saved network: its "format" is not "deeplab_jax"$'),
        ({"version": VERSION + 1}, f"config.json has version {VERSION + 1}; .* reads versions 1 to {VERSION}$"),
        ({"model": {"bakbone": "x"}}, "config field model.bakbone does not exist; did you mean model.backbone"),
        ({"model": 3}, "config.json is damaged: "),
        ({"palette": None}, "config.json is damaged: TypeError"),
        (
            {"class_names": list("abcdef"), "palette": [[0, 0, 256]] * 6},
            "class 'a' has the color .*, not three integers",
        ),
        ({"class_names": list("abcde") + [3], "palette": [[0, 0, 0]] * 6}, "class name 3 is not text"),
        ({"image_size": [10**9, 10**9]}, "config.json is damaged: ValueError: image_size 1000000000x1000000000"),
        ({"image_size": [10**400, 1]}, "config.json is damaged: "),
        (
            {"class_names": ["a"], "palette": [[0, 0, 0]]},
            "does not fit its config.json: params/classifier/bias and 1 mo",
        ),
    ],
)
def test_a_wrong_config_is_named(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_report_is_loaded_as_text(folder):
    change_config(folder, report=[None, 3])
    assert load(folder).report == ("None", "3")


def test_repeated_averaging_is_reported_once(network):
    mean = average([network, network])
    assert average([mean, network]).report == mean.report == ("averaged the variables of 2 networks",)


def test_damaged_and_missing_files_are_named(folder):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="model.safetensors is damaged: "):
        load(folder)
    arrays = safetensors.numpy.load(content)
    arrays["params/extra/kernel"] = np.zeros(3, np.float32)
    weights.write_bytes(safetensors.numpy.save(arrays))
    with pytest.raises(UserError, match="model.safetensors does not fit its config.json: params/extra/kernel$"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged: "):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"aspp_channels": 10**9}, "model.aspp_channels=1000000000 must be an integer between 1 and 65536"),
        ({"width_multiplier": 1e300}, r"model.width_multiplier=1e\+300 must be a number above 0"),
        ({"input_std": [1e300] * 3}, "model.input_std=.* each value must be a number above 0"),
        ({"atrous_rates": [6] * 100_000}, "model.atrous_rates has 100000 values; at most 64 are possible"),
        ({"atrous_rates": [2**40]}, "model.atrous_rates=.* each value must be an integer between 1 and"),
        ({"aspp_channels": 60_000}, "model.safetensors does not fit its config.json: "),
    ],
)
def test_sizes_of_a_hostile_config_are_named(folder, fields, match):
    model = json.loads((folder / "config.json").read_text())["model"]
    change_config(folder, model=model | fields)
    with pytest.raises(UserError, match=match) as caught:
        load(folder)
    assert len(str(caught.value)) < 500


def test_deep_json_and_huge_headers_are_named(folder):
    weights, config = folder / "model.safetensors", folder / "config.json"
    weights.write_bytes((1 << 40).to_bytes(8, "little") + weights.read_bytes()[8:])
    with pytest.raises(UserError, match="model.safetensors is damaged: its header claims 1099511627776 bytes"):
        load(folder)
    config.write_text('{"format":' + "[" * 100_000)
    with pytest.raises(UserError, match="config.json is damaged: its JSON is nested more than 64 levels deep"):
        load(folder)
