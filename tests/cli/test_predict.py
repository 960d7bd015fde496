"""`deeplab-jax predict`."""

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.pretrained import bundle, load


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(path)
    return path


def test_a_folder_is_predicted_and_results_are_not_overwritten(run, fails, trained, tmp_path, image):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a.png", "b.png"):
        (images / name).write_bytes(image.read_bytes())
    code, stdout, err = run("predict", images, "--workdir", trained, "--output", out)
    assert (code, stdout) == (0, "")
    assert err[-1] == f"Wrote 2 masks and overlays to {out}"
    assert sorted(path.name for path in out.iterdir()) == [
        "a_mask.png", "a_overlay.png", "b_mask.png", "b_overlay.png",
    ]  # fmt: skip
    with Image.open(out / "a_mask.png") as mask:
        assert mask.size == (20, 30)
    exists = "a_mask.png exists; choose another --output or remove it"
    fails("predict", images, "--workdir", trained, "--output", out, message=exists)
    # Reported before a network is loaded.
    fails("predict", images, "--workdir", tmp_path / "no-run", "--output", out, message=exists)


def test_a_missing_image_is_reported_before_anything_is_written(fails, trained, tmp_path):
    arguments = ("--workdir", trained, "--output", tmp_path / "out")
    fails("predict", tmp_path / "none.png", *arguments, message="none.png does not exist")
    assert not (tmp_path / "out").exists()


def test_the_default_network_is_the_default_preset(run, trained, tmp_path, image, monkeypatch):
    bundle.save(load(trained), tmp_path / "net")
    monkeypatch.setattr("deeplab_jax.pretrained.DEFAULT_PRESET", str(tmp_path / "net"))
    options = ["--classes", "disk,star", "--window", "32x32"]
    code, _, err = run("predict", image, "--output", tmp_path / "out", *options)
    assert (code, err[-1]) == (0, f"Wrote 1 masks and overlays to {tmp_path / 'out'}")
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {1, 4}
        assert mask.size == (20, 30)
