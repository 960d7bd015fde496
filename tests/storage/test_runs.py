"""A run in a bucket, by the commands: it equals a local run, and everything reads it."""

import json

import pytest

from deeplab_jax.cli import main
from deeplab_jax.storage import client
from tests.conftest import scene, write_jpeg
from tests.support import runs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPLAB_JAX_OPS", raising=False)


def call(*arguments):
    with pytest.raises(SystemExit) as done:
        main.main([str(argument) for argument in arguments])
    assert done.value.code == 0


def test_a_run_in_a_bucket(bucket, trained, tiny_arguments, tmp_path, capsys):
    workdir = bucket / "runs" / "a"
    train = ["train", "--workdir", workdir, *tiny_arguments, "--config.log.tensorboard=True"]
    call(*train)
    local = tmp_path / "copy"
    names = [entry.name for entry in client.list_files(workdir)]
    client.download([(workdir / name, local / name) for name in names])
    runs.assert_same_state(local, trained)
    assert runs.lines(local) == runs.lines(trained)
    expected = {path.name for path in trained.iterdir()} | {"tensorboard"}
    assert {path.name for path in local.iterdir()} == expected
    assert (local / "tensorboard").is_dir()
    before = (workdir / "metrics.jsonl").read_bytes()
    call(*train)  # a finished run evaluates its last state again
    assert len((workdir / "metrics.jsonl").read_bytes().splitlines()) == len(before.splitlines())
    call("evaluate", "--workdir", workdir, "--report", bucket / "report")
    assert (bucket / "report" / "report.html").is_file()
    write_jpeg(tmp_path / "photo.jpg", scene(1)[0])
    call("predict", tmp_path / "photo.jpg", "--workdir", f"{workdir}@newest", "--output", bucket / "masks")
    assert {path.name for path in (bucket / "masks").iterdir()} == {"photo_mask.png", "photo_overlay.png"}
    call("convert", "--from", "workdir", workdir, "--output", bucket / "network")
    call(
        "predict", bucket / "masks" / "photo_overlay.png", "--preset", bucket / "network", "--output", tmp_path / "out"
    )
    assert (tmp_path / "out" / "photo_overlay_mask.png").is_file()
    capsys.readouterr()
    call("runs", bucket / "runs", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["state"], found["step"]) == ("a", "finished", 2)
