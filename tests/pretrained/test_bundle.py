"""The project's own format: what is written is read again, the same bytes each time, and damage is named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.pretrained import average, bundle, load


@pytest.fixture(scope="module")
def network(trained):
    return load(trained)


@pytest.fixture
def folder(network, tmp_path):
    bundle.save(network, tmp_path / "net")
    return tmp_path / "net"


def test_a_network_is_read_as_it_was_written(network, folder):
    again = load(folder)
    assert again.model.to_dict() == network.model.to_dict()
    assert again.label_set == network.label_set == SYNTHETIC
    assert (again.protocol, again.image_size, again.report) == ("guide", (32, 32), ())
    assert jax.tree.structure(again.variables) == jax.tree.structure(network.variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again.variables, network.variables)))
    assert {leaf.dtype for leaf in jax.tree.leaves(again.variables)} == {np.dtype(np.float32)}


def test_writing_twice_gives_the_same_bytes(network, folder, tmp_path):
    bundle.save(load(folder), tmp_path / "twice")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"config.json", "model.safetensors"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()}


def test_kernels_can_be_kept_in_half_the_size(network, tmp_path):
    bundle.save(network, tmp_path / "half", half=True)
    stored = safetensors.numpy.load_file(tmp_path / "half" / "model.safetensors")
    assert {(value.ndim > 1, value.dtype.name) for value in stored.values()} == {(True, "float16"), (False, "float32")}
    again = load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(again.variables)} == {np.dtype(np.float32)}

    def check(value, expected):
        # float16 has eleven bits: the nearest is within 2^-11, below 2^-14 within half of its smallest step.
        np.testing.assert_allclose(value, expected, rtol=2.0**-11 if expected.ndim > 1 else 0, atol=2.0**-25)

    jax.tree.map(check, again.variables, network.variables)


def test_a_kernel_that_half_precision_cannot_hold_is_named(network, tmp_path):
    variables = jax.tree.map(np.array, network.variables)
    variables["params"]["classifier"]["kernel"][..., 0] = 1e5
    with pytest.raises(UserError, match="^params/classifier/kernel has values that float16 cannot hold"):
        bundle.save(dataclasses.replace(network, variables=variables), tmp_path / "half", half=True)


def test_what_is_there_is_not_overwritten(network, folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="net exists and is not empty; choose another folder or remove it$"):
        bundle.save(network, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="config.json exists and is not empty"):
        bundle.save(network, folder / "config.json")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "keras"}, 'config.json is no config of a pretrained network: its "format" is not "deeplab_jax"$'),
        ({"version": 3}, "config.json has version 3; this deeplab_jax reads versions 1 to 2$"),
        ({"model": {"bakbone": "x"}}, "config field model.bakbone does not exist; did you mean backbone"),
        ({"model": 3}, "config.json is damaged: "),
        ({"palette": None}, "config.json is damaged: TypeError"),
        (
            {"class_names": ["a"], "palette": [[0, 0, 0]]},
            "does not fit its config.json: params/classifier/bias and 1 mo",
        ),
    ],
)
def test_a_config_that_is_wrong_is_named(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_report_is_read_as_text(folder):
    change_config(folder, report=[None, 3])
    assert load(folder).report == ("None", "3")


def test_a_mean_of_means_is_reported_once(network):
    mean = average([network, network])
    assert average([mean, network]).report == mean.report == ("the mean of 2 networks' variables",)


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
