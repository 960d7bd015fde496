"""`deeplab-jax predict`."""

import itertools

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.cli import exits
from deeplab_jax.data.images import MAX_PIXELS
from deeplab_jax.inference import files
from deeplab_jax.parallel.preemption import Preemption
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
    exists = "a_mask.png exists; use --skip-existing to predict only the other inputs, --overwrite, or another --output"
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


def test_a_damaged_image_does_not_stop_the_others(run, trained, tmp_path, image):
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "late").mkdir(parents=True)
    for name in ("a.png", "c.png", "late/a.png"):
        (images / name).write_bytes(image.read_bytes())
    (images / "b.png").write_bytes(image.read_bytes()[:60])
    (images / "notes.jp2").touch()
    arguments = ("predict", images, "--workdir", trained, "--output", out)
    code, _, err = run(*arguments)
    assert code == 1
    assert err[0].startswith(f"warning: not predicted in {images}, because they are not images: 1 .jp2 file")
    assert err[1].startswith(f"warning: image {images / 'b.png'} cannot be read")
    assert err[2] == f"Wrote 3 masks and overlays to {out}"
    assert err[3].startswith(f"deeplab-jax: 1 of 4 inputs failed ({images / 'b.png'}): image {images / 'b.png'} cannot")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*_mask.png")) == [
        "a_mask.png", "c_mask.png", "late/a_mask.png",
    ]  # fmt: skip
    (images / "b.png").write_bytes(image.read_bytes())
    code, _, err = run(*arguments, "--skip-existing")
    assert (code, err[-2:]) == (0, ["Skipped 3 images whose results exist", f"Wrote 1 masks and overlays to {out}"])
    # Nothing is loaded when nothing is left to do.
    code, _, err = run("predict", images, "--workdir", tmp_path / "no-run", "--output", out, "--skip-existing")
    assert (code, err[-1]) == (0, f"Nothing to do: all results exist in {out}")
    code, _, err = run(*arguments, "--overwrite")
    assert (code, err[-1]) == (0, f"Wrote 4 masks and overlays to {out}")


class StopAfter(Preemption):
    """A signal after a number of images have been taken up."""

    def __init__(self, images: int):
        super().__init__()
        self._asked = itertools.count()
        self._images = images

    @property
    def is_requested(self) -> bool:
        return next(self._asked) >= self._images


def test_a_stopped_prediction_writes_what_it_has_read_and_continues(run, trained, tmp_path, image, monkeypatch):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in "abcdefgh":
        (images / f"{name}.png").write_bytes(image.read_bytes())
    arguments = ("predict", images, "--workdir", trained, "--output", out)
    with monkeypatch.context() as patch:
        patch.setattr(exits, "notice_signals", lambda *args, **options: StopAfter(3))
        code, _, err = run(*arguments)
    assert code == 75
    assert err[-1] == (
        "deeplab-jax: stopped by SIGTERM after 3 of 8 images, whose results are written; add --skip-existing to the "
        "command to continue"
    )
    written = {path: path.read_bytes() for path in out.iterdir()}
    assert sorted(path.name for path in written) == [
        f"{name}_{kind}.png" for name in "abc" for kind in ("mask", "overlay")
    ]
    code, _, err = run(*arguments, "--skip-existing")
    assert (code, err) == (0, ["Skipped 3 images whose results exist", f"Wrote 5 masks and overlays to {out}"])
    assert {path: path.read_bytes() for path in written} == written


def test_options_reach_the_images(run, image, tmp_path, monkeypatch):
    passed = {}

    def record(predictor, paths, **options):
        passed.update(options)
        return files.FilesReport([], {})

    monkeypatch.setattr("deeplab_jax.cli.predict._load_predictor", lambda args: None)
    monkeypatch.setattr(files, "predict_paths", record)
    arguments = ("predict", image, "--output", tmp_path / "out")
    assert run(*arguments).code == 0
    assert isinstance(passed.pop("preemption"), Preemption)
    assert passed == {"max_pixels": None, "value_range": None, "write": None}
    assert run(*arguments, "--value-range=-1024,3071.5", "--max-megapixels", 500).code == 0
    del passed["preemption"]
    assert passed == {"max_pixels": 500_000_000, "value_range": (-1024, 3071.5), "write": None}


@pytest.mark.parametrize("text", ["4095", "0,4095,1", "5,5", "9,1", "a,b", "0,inf", "nan,1", ""])
def test_an_invalid_range_is_reported(run, image, tmp_path, text):
    code, _, err = run("predict", image, "--output", tmp_path, f"--value-range={text}")
    assert code == 2
    assert "is not LOW,HIGH, two increasing numbers such as 0,4095" in err[-1]


def test_the_help_names_the_default_limit(run):
    assert f"in million pixels (default: {MAX_PIXELS // 10**6})" in " ".join(run("predict", "--help").out.split())
