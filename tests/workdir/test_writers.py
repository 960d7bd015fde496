"""Runs in TensorBoard, Weights & Biases and MLflow, read back as those tools read them."""

import collections
import importlib.util
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from deeplab_jax import config as config_lib
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.labels import VOC
from deeplab_jax.workdir import writers
from deeplab_jax.workdir.metrics_log import Writer
from tests.support import wandb_file

IMAGE = (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
IOU = {"tv/monitor": 0.25, "tv (monitor": 0.5, "tv [monitor": 0.75, "café": None}


def make_config(**log):
    config = config_lib.base_config()
    config.log.tensorboard = False
    config.log.update(log)
    return config


def train(workdir, config, start, end, *, error=None):
    """Writes what a run from one step to another reports, every ten steps; `error` ends it."""
    with Writer(workdir, total_steps=40, batch_size=4, start_step=start, config=config) as writer:
        for step in range(start + 10, end + 1, 10):
            writer.write_train(step, {"loss": float(step), "mean_iou": None})
            writer.write_evaluation(step, {"mean_iou": step / 100, "per_class_iou": IOU, "gallery": [IMAGE]}, VOC)
        if error is not None:
            raise error


def train_with_a_stop(workdir, config):
    """A run that is stopped at step 30 and continues from the checkpoint of step 20."""
    with pytest.raises(Preempted):
        train(workdir, config, 0, 30, error=Preempted("stopped"))
    if config.log.wandb:
        time.sleep(1.1)  # it names folders by the second that they are created in
    train(workdir, config, 20, 40)


# TensorBoard


@pytest.fixture
def load_events():
    """A function that reads the events below a folder as TensorBoard does, and returns its data provider."""
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer

    def load(folder):
        multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
        multiplexer.Reload()
        return data_provider.MultiplexerDataProvider(multiplexer, str(folder))

    return load


def list_sessions(provider):
    """The rows of TensorBoard's table of hyper-parameters."""
    from tensorboard import context
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    metrics = plugin.experiment_from_metadata(
        context.RequestContext(), "", True, plugin.hparams_metadata(context.RequestContext(), ""), None
    ).metric_infos
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        allowed_statuses=list(api_pb2.Status.values()),
        col_params=[api_pb2.ColParams(metric=metric.name) for metric in metrics],
    )
    answer = list_session_groups.Handler(context.RequestContext(), plugin, "", request).run()
    return [(group, *group.sessions) for group in answer.session_groups]


def test_tensorboard_compares_runs_by_fields_and_scores(tmp_path, load_events):
    for name, rate in (("slow", 0.01), ("fast", 0.1)):
        config = make_config(tensorboard=True)
        config.optimizer.learning_rate = rate
        train_with_a_stop(tmp_path / name, config)
    rows = {}
    for group, session in list_sessions(load_events(tmp_path)):
        scores = {value.name.tag: value.value for value in session.metric_values}
        rows[session.name] = (
            group.hparams["optimizer.learning_rate"].number_value,
            group.hparams["optimizer.nesterov"].bool_value,
            group.hparams["eval.scales"].string_value,
            scores["eval/mean_iou"],
            scores["iou/tv/monitor"],
            session.status,
        )
    mean_iou = float(np.float32(0.4))  # TensorBoard holds float32
    success = 1
    assert rows == {
        "slow/tensorboard": (0.01, False, "(1.0,)", mean_iou, 0.25, success),
        "fast/tensorboard": (0.1, False, "(1.0,)", mean_iou, 0.25, success),
    }


def test_tensorboard_shows_the_curve_of_every_class_once_and_the_config(tmp_path, load_events):
    from tensorboard import context
    from tensorboard.data import provider as provider_lib

    config = make_config(tensorboard=True)
    config.train.seed = 7
    train_with_a_stop(tmp_path, config)
    options = {"experiment_id": "", "run_tag_filter": provider_lib.RunTagFilter(runs=["tensorboard"])}
    data = load_events(tmp_path)
    curves = data.read_scalars(context.RequestContext(), plugin_name="scalars", downsample=100, **options)
    points = {tag: [(point.step, point.value) for point in curve] for tag, curve in curves["tensorboard"].items()}
    for name in ("tv/monitor", "tv (monitor", "tv [monitor"):
        assert points[f"iou/{name}"] == [(step, IOU[name]) for step in (10, 20, 30, 40)]
    assert "iou/café" not in points
    assert points["train/loss"] == [(step, float(step)) for step in (10, 20, 30, 40)]
    texts = data.read_tensors(context.RequestContext(), plugin_name="text", downsample=10, **options)
    shown = texts["tensorboard"]["config/text_summary"][-1].numpy.item().decode()
    assert all(line.startswith("    ") for line in shown.splitlines())  # Markdown's code
    assert json.loads(shown) == config_lib.to_saved(config)


# Trackers


@pytest.fixture
def offline_wandb(monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def mlflow_client(monkeypatch, tmp_path):
    """A client of the run's own store: files, which take no time to create; a database needs ten seconds."""
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    return mlflow.MlflowClient()


def read_wandb(workdir) -> tuple[set[str], dict[str, list]]:
    """The identifiers of the offline runs, and all points by name."""
    ids, points = set(), collections.defaultdict(list)
    for records in wandb_file.read_runs(workdir / "wandb", starts=2):
        ids |= {record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}
        for row in wandb_file.history(records):
            for name, value in row.items():
                points[name].append((row["step"], value))
    return ids, points


def read_mlflow(client, experiment="voc") -> list[tuple]:
    """Each run with its points by name."""
    found = client.get_experiment_by_name(experiment)
    runs = []
    for run in client.search_runs([found.experiment_id], order_by=["attribute.start_time"]):
        history = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        runs.append((run, history))
    return runs


def test_wandb_continues_one_run_with_every_point_once(tmp_path, offline_wandb):
    config = make_config(wandb="voc")
    config.optimizer.learning_rate = 0.125
    train_with_a_stop(tmp_path / "run", config)
    ids, points = read_wandb(tmp_path / "run")
    assert ids == {json.loads((tmp_path / "run" / "wandb.json").read_text())["run_id"]}
    assert points["train/loss"] == [(step, step) for step in (10, 20, 30, 40)]
    assert points["eval/mean_iou"] == [(step, step / 100) for step in (10, 20, 30, 40)]
    assert points["iou/tv (monitor"] == [(step, 0.5) for step in (10, 20, 30, 40)]
    assert [step for step, _ in points["eval/gallery/path"]] == [10, 20, 30, 40]
    last = wandb_file.read_runs(tmp_path / "run" / "wandb", starts=2)[-1]
    (axis,) = [record.metric for record in last if record.WhichOneof("record_type") == "metric"]
    assert (axis.glob_name, axis.step_metric) == ("*", "step")
    saved = {
        item.key: json.loads(item.value_json)
        for record in last
        if record.WhichOneof("record_type") == "config"
        for item in record.config.update
    }
    assert saved["optimizer"]["learning_rate"] == 0.125


def test_mlflow_continues_one_run_with_every_point_once(tmp_path, mlflow_client):
    config = make_config(mlflow="voc")
    config.optimizer.learning_rate = 0.125
    train_with_a_stop(tmp_path / "run", config)
    ((run, points),) = read_mlflow(mlflow_client)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert points["train/loss"] == [(step, step) for step in (10, 20, 30, 40)]
    # MLflow has no parentheses, and no two classes become one.
    assert {name: points[f"iou/tv{name}"] for name in ("/monitor", " _monitor", " _monitor_2")} == {
        name: [(step, value) for step in (10, 20, 30, 40)]
        for name, value in (("/monitor", 0.25), (" _monitor", 0.5), (" _monitor_2", 0.75))
    }
    assert run.data.params["optimizer.learning_rate"] == "0.125"
    images = [file.path for file in mlflow_client.list_artifacts(run.info.run_id, "eval")]
    assert images == [f"eval/gallery_{step}.png" for step in (10, 20, 30, 40)]


def test_a_stopped_run_says_so(tmp_path, mlflow_client):
    with pytest.raises(Preempted):
        train(tmp_path / "stopped", make_config(mlflow="voc"), 0, 10, error=Preempted("stopped"))
    with pytest.raises(UserError):
        train(tmp_path / "failed", make_config(mlflow="voc"), 0, 10, error=UserError("not finite"))
    states = {run.info.run_name: run.info.status for run, _ in read_mlflow(mlflow_client)}
    assert states == {"stopped": "KILLED", "failed": "FAILED"}


def test_a_tracker_that_is_added_later_gets_the_whole_run(tmp_path, mlflow_client):
    train(tmp_path / "run", make_config(), 0, 20)
    train(tmp_path / "run", make_config(mlflow="voc"), 20, 40)
    ((_, points),) = read_mlflow(mlflow_client)
    assert points["train/loss"] == [(step, step) for step in (10, 20, 30, 40)]
    assert points["eval/mean_iou"] == [(step, step / 100) for step in (10, 20, 30, 40)]


def test_a_run_from_scratch_or_for_another_experiment_is_another_one(tmp_path, mlflow_client):
    train(tmp_path / "run", make_config(mlflow="voc"), 0, 10)
    train(tmp_path / "run", make_config(mlflow="voc"), 0, 20)
    train(tmp_path / "run", make_config(mlflow="other"), 20, 30)
    assert [points["train/loss"] for _, points in read_mlflow(mlflow_client)] == [[(10, 10)], [(10, 10), (20, 20)]]
    ((_, points),) = read_mlflow(mlflow_client, "other")
    assert points["train/loss"] == [(10, 10), (20, 20), (30, 30)]


def test_a_tracker_that_fails_never_stops_the_run_and_gets_the_rest_when_it_continues(
    tmp_path, mlflow_client, monkeypatch, caplog
):
    import mlflow

    config = make_config(mlflow="voc")
    with monkeypatch.context() as patch:
        sent = []

        def fail_later(client, run_id, metrics=(), **others):
            sent.append(metrics)
            if len(sent) > 5:
                raise mlflow.exceptions.MlflowException("the server is\naway")
            return log_batch(client, run_id, metrics=metrics, **others)

        log_batch = mlflow.MlflowClient.log_batch
        patch.setattr(mlflow.MlflowClient, "log_batch", fail_later)
        train(tmp_path / "run", config, 0, 40)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["cannot write to log.mlflow=voc: the server is away; the run continues without it"]
    ((_, points),) = read_mlflow(mlflow_client)
    assert len(points["train/loss"]) < 4
    train(tmp_path / "run", config, 30, 40)
    ((_, points),) = read_mlflow(mlflow_client)
    assert points["train/loss"] == [(step, step) for step in (10, 20, 30, 40)]
    assert points["eval/mean_iou"] == [(step, step / 100) for step in (10, 20, 30, 40)]


def test_a_server_that_does_not_answer_is_one_warning(tmp_path, mlflow_client, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(tmp_path / "run", make_config(mlflow="voc"), 0, 20)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("cannot write to log.mlflow=voc: ")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    writers.check_installed(make_config())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log\.wandb='voc' needs the package wandb; .* 'deeplab_jax\[wandb\]'"):
        writers.check_installed(make_config(wandb="voc"))


def test_training_checks_the_packages_first(tiny_config, tmp_path, monkeypatch):
    from deeplab_jax.training.loop import train as train_network

    tiny_config.log.mlflow = "voc"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    with pytest.raises(UserError, match="needs the package mlflow"):
        train_network(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackers_are_only_imported_where_they_are_configured():
    code = "import sys, deeplab_jax.workdir.metrics_log; print({'wandb', 'mlflow', 'tensorboardX'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"
