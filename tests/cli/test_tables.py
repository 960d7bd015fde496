"""Commands that print tables: `presets`, `configs`, `runs`, `summary` and `benchmark-latency`."""

import json

import pytest

from deeplab_jax.analysis import latency
from deeplab_jax.cli import names
from deeplab_jax.labels import SYNTHETIC
from deeplab_jax.pretrained import bundle, load, presets
from deeplab_jax.workdir import layout


@pytest.mark.parametrize(("command", "expected"), [("presets", list(presets.load_table())), ("configs", None)])
def test_lists_name_every_entry_and_can_be_json(run, command, expected, tmp_path):
    expected = expected or names.config_names()
    code, table, err = run(command)
    assert (code, err) == (0, [])
    for name in expected:
        assert name in table
    values = json.loads(run(command, "--json").out)
    assert [value["name"] for value in values] == expected
    code, out, _ = run(command, "--json", tmp_path / "list.json")
    assert (code, out) == (0, table)
    assert json.loads((tmp_path / "list.json").read_text()) == values


def test_configs_show_their_summary(run):
    values = {value["name"]: value for value in json.loads(run("configs", "--json").out)}
    assert "KerasCV" in values["kerascv_guide"]["summary"]
    assert {"name", "summary", "data", "score"} <= values["quickstart"].keys()


def test_a_summary_is_a_table(run):
    code, out, err = run("summary", "--config", "quickstart:size=64")  # the data set has six classes
    assert (code, err) == (0, [])
    assert "resnet10_v1_slim, output stride 8, 64x64 pixels" in out
    assert "64x64x6" in out


def test_a_summary_of_a_data_set_that_is_not_prepared_assumes_the_classes(run, tmp_path):
    data = (f"--config.data.data_dir={tmp_path}", "--config.data.name=camvid", "--config.optimizer.clip_norm=1.0")
    code, out, err = run("summary", "--config", "quickstart:size=64", *data)
    assert code == 0
    assert "64x64x21" in out
    assert err == [
        "warning: the config sets fields that have no effect: optimizer.clip_norm (needs "
        "optimizer.clip=per_variable or global)",
        f"data set camvid is not prepared in {tmp_path}; run `deeplab-jax data prepare camvid --data-dir {tmp_path}`; "
        "assuming 21 classes, see --classes",
    ]


@pytest.mark.parametrize("size", ["abc", "(0,64)", "(64,)"])
def test_a_summary_of_an_invalid_config_is_refused(fails, size):
    fails("summary", "--config", "quickstart", f"--config.data.image_size={size}", message="data.image_size=(")


def test_a_summary_shows_a_mesh_of_devices_that_this_machine_does_not_have(run, fails):
    arguments = ("summary", "--config", "quickstart:size=64,batch=32", "--mesh", "32")
    code, out, err = run(*arguments, "--config.mesh.fsdp=4")
    assert (code, err) == (0, [])
    assert "data 8 x fsdp 4 x spatial 1" in out
    assert "axis 0 over data x fsdp" in out
    fails(*arguments, "--config.mesh.fsdp=5", message="mesh.fsdp=5")


def test_a_summary_can_be_json(run, tmp_path):
    arguments = ("summary", "--config", "quickstart:size=64,batch=32", "--classes", "6", "--mesh", "8")
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, [])
    values = json.loads(out)
    parts = {part["name"]: part for part in values["parts"]}
    assert parts["classifier"]["output_shape"] == [1, 64, 64, 6]
    assert sum(part["trainable"] for part in values["parts"]) > 10_000
    assert values["mesh"] == {"data": 8, "fsdp": 1, "spatial": 1}
    arrays = {array["name"]: array for array in values["arrays"]}
    assert arrays["batch/image"] == {
        "name": "batch/image", "shape": [32, 64, 64, 3], "split": "axis 0 over data",
        "total_bytes": 32 * 64 * 64 * 3, "device_bytes": 4 * 64 * 64 * 3,
    }  # fmt: skip
    code, table, _ = run(*arguments, "--json", tmp_path / "summary.json")
    assert "data 8 x fsdp 1 x spatial 1" in table
    assert json.loads((tmp_path / "summary.json").read_text()) == values


def test_latencies_are_a_table(run, trained, tmp_path, monkeypatch):
    bundle.save(load(trained), tmp_path / "net")
    results = [latency.Latency((32, 32), 1, 1.5, 2.5)]
    monkeypatch.setattr(latency, "measure_latency", lambda network, sizes, batches, **_: results)
    code, out, _ = run("benchmark-latency", "--preset", tmp_path / "net", "--sizes", "32x32", "--batches", "1,2")
    assert code == 0
    assert "32x32" in out
    code, out, _ = run("benchmark-latency", "--preset", tmp_path / "net", "--json")
    assert json.loads(out) == {"results": [{"size": [32, 32], "batch": 1, "p50": 1.5, "p95": 2.5}]}


def test_runs_are_a_table_of_scores_and_of_what_differs(run, tmp_path, tiny_config):
    for rate, score in ((0.01, 0.25), (0.1, 0.5)):
        workdir = tmp_path / f"rate_{rate}"
        tiny_config.optimizer.learning_rate = rate
        splits = {"train": {"examples": 16, "ids": "12ab"}}
        fingerprint = {"name": "synthetic", "class_names": list(SYNTHETIC.class_names), "splits": splits}
        with layout.lock(workdir):
            layout.write_config(workdir, tiny_config, SYNTHETIC, {"train": fingerprint, "evaluate": fingerprint})
        (workdir / "metrics.jsonl").write_text(json.dumps({"step": 2, "eval": {"mean_iou": score}}) + "\n")
    code, table, err = run("runs", tmp_path)
    assert (code, err) == (0, [])
    assert table.index("rate_0.1") < table.index("rate_0.01")
    assert "optimizer. learning_rate" in table
    assert "0.5000" in table
    values = json.loads(run("runs", tmp_path, "--json").out)
    assert [value["differs"] for value in values] == [
        {"optimizer.learning_rate": 0.1},
        {"optimizer.learning_rate": 0.01},
    ]
    assert values[0]["best"]["mean_iou"] == 0.5
