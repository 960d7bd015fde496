"""`deeplab-jax convert`."""

import dataclasses
import pathlib

import jax
import numpy as np

from deeplab_jax.pretrained import bundle, load

TINY_TFLITE = pathlib.Path(__file__).parents[1] / "pretrained" / "readers" / "data" / "float.tflite"


def test_a_file_is_converted_reported_and_not_overwritten(run, fails, tmp_path):
    arguments = ["convert", "--from", "tflite", TINY_TFLITE, "--output", tmp_path / "net"]
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    assert "0 missing, 0 unused" in err[0]
    assert err[-1].startswith(f"Wrote {tmp_path / 'net'}: mobilenet_v2, ")
    fails(*arguments, message="net exists and is not empty")
    assert run(*arguments[:-1], tmp_path / "again").code == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "net" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_several_networks_are_averaged(run, fails, trained, tmp_path):
    network = load(trained)
    for name, factor in (("one", 1), ("three", 3)):
        variables = jax.tree.map(lambda leaf, factor=factor: factor * leaf, network.variables)
        model = network.model.copy_and_resolve_references()
        model.freeze_norm_statistics = name == "three"  # a field of training is not compared
        bundle.save(dataclasses.replace(network, model=model, variables=variables), tmp_path / name)
    sources = tmp_path / "one", tmp_path / "three"
    code, _, err = run("convert", "--from", "deeplab_jax", *sources, "--output", tmp_path / "mean")
    assert code == 0
    assert "averaged the variables of 2 networks" in err
    jax.tree.map(
        lambda mean, leaf: np.testing.assert_allclose(mean, 2 * leaf, rtol=1e-6),  # one rounding
        load(tmp_path / "mean").variables,
        network.variables,
    )
    other = network.model.copy_and_resolve_references()
    other.align_corners = not other.align_corners
    bundle.save(dataclasses.replace(network, model=other), tmp_path / "other")
    arguments = ("convert", "--from", "deeplab_jax", tmp_path / "one", tmp_path / "other", "--output", tmp_path / "no")
    fails(*arguments, message="network 2 has another model or other classes than the first")
    assert not (tmp_path / "no").exists()


def test_a_run_becomes_a_folder(run, trained, tmp_path):
    folder, again = tmp_path / "net", tmp_path / "again"
    assert run("convert", "--from", "workdir", trained, "--size", "48x64", "--half", "--output", folder).code == 0
    network = load(folder)
    assert network.image_size == (48, 64)
    assert network.label_set == load(trained).label_set
    assert (folder / "model.safetensors").stat().st_size < 0.6 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(network.variables)
    )
    assert run("convert", "--from", "deeplab_jax", folder, "--half", "--output", again).code == 0
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
