"""Training from end to end on generated scenes: the files it writes, and that it resumes exactly."""

import gzip
import json

import jax
import numpy as np
import pytest

from deeplab_jax.data.sources import synthetic
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.evaluator import evaluate
from deeplab_jax.models import PARTS
from deeplab_jax.parallel import sharding
from deeplab_jax.training import loop as train_module
from deeplab_jax.training import optimizer
from deeplab_jax.training.loop import train
from deeplab_jax.training.metrics_window import MetricsWindow
from deeplab_jax.workdir import checkpoint
from tests.support import tiny_experiment


def experiment(steps=6, **train_fields):
    """The config of `tiny_experiment.py` on one device."""
    config = tiny_experiment.get_config(f"steps={steps}")
    config.eval.every = None
    config.log.every_steps = 2
    config.mesh.data = 1
    config.train.update(train_fields)
    return config


class Killed(Exception):
    """Stands for whatever ends a process."""


def lines(workdir):
    """metrics.jsonl without its timing fields."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("_per_second")} for row in rows]


def final_state(workdir):
    with checkpoint.Checkpoints(workdir) as checkpoints:
        return jax.device_get(checkpoints.saved_variables())


# The events of the straight run: ("copy", step) when it starts to copy a batch to the device, and ("wait", step) when
# it waits for the result of a step.
EVENTS: list[tuple[str, int]] = []


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without an interruption, two of them traced."""
    workdir = tmp_path_factory.mktemp("straight")
    config = experiment(steps=6)
    config.log.profile_steps = 2
    copy, catch_up = sharding.to_global, MetricsWindow.catch_up

    def record_copy(batch, mesh):
        EVENTS.append(("copy", 1 + sum(event == "copy" for event, _ in EVENTS)))
        return copy(batch, mesh)

    def record_wait(window):
        if window._unread is not None:
            EVENTS.append(("wait", window._unread[0]))
        catch_up(window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "to_global", record_copy)
        patch.setattr(MetricsWindow, "catch_up", record_wait)
        return workdir, config, train(config, workdir)


def test_a_batch_is_copied_to_the_device_while_the_step_before_it_runs(straight):
    for step in (1, 3, 5):  # after the others, a checkpoint is saved, which waits
        assert EVENTS.index(("copy", step + 1)) < EVENTS.index(("wait", step))
        assert EVENTS.index(("copy", step + 2)) > EVENTS.index(("wait", step))  # and no more of them


def test_a_run_writes_its_results(straight):
    workdir, config, scores = straight
    written = json.loads((workdir / "metrics.json").read_text())
    assert written == json.loads(json.dumps(scores))
    assert set(written) == {
        "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "mean_dice", "mean_precision",
        "per_class_iou", "per_class_dice", "per_class_precision", "per_class_recall", "loss", "num_images",
        "num_pixels", "step", "config",
    }  # fmt: skip
    assert written["num_images"] == 200
    assert written["step"] == 6
    assert written["config"]["train"]["duration"] == "6 steps"
    assert set(written["per_class_iou"]) == {"background", "disk", "ring", "triangle", "star", "bar"}
    for name in ("gallery.png", "curves.png", "learning_rate.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert [row["step"] for row in lines(workdir)] == [2, 4, 6, 6]
    assert "eval" in lines(workdir)[-1]
    assert not list(workdir.glob("**/*.part"))


def executions(trace):
    """Number of calls of the train step in a Perfetto trace, in which events of one call may be nested."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    calls = [(event["ts"], event["dur"]) for event in events if event.get("name") == "PjitFunction(train_step)"]
    count, end = 0, 0.0
    for start, duration in sorted(calls):
        count += start >= end
        end = max(end, start + duration)
    return count


def test_the_requested_steps_are_traced(straight):
    workdir, _, _ = straight
    (trace,) = workdir.glob("profile/**/perfetto_trace.json.gz")
    assert executions(trace) == 2
    assert len(list(trace.parent.glob("*.xplane.pb"))) == 1


def train_three_steps(config, workdir, monkeypatch):
    """Begins a training that is killed: one step after a checkpoint of every second."""
    original, taken = train_module.data.train_batches, []

    class Stopping:
        def __init__(self, batches):
            self._batches = batches

        def __iter__(self):
            return self

        def __next__(self):
            if len(taken) == 3:
                raise Killed
            taken.append(1)
            return next(self._batches)

        def close(self):
            self._batches.close()

    monkeypatch.setattr(train_module.data, "train_batches", lambda *args, **kwargs: Stopping(original(*args, **kwargs)))
    with pytest.raises(Killed):
        train(config, workdir)
    monkeypatch.undo()


def test_a_stopped_run_continues_to_the_same_end(straight, tmp_path, monkeypatch, caplog):
    """Bit for bit: the parameters, and every logged number. Both say in one line what they will train."""
    workdir, config, _ = straight
    caplog.set_level("INFO", logger="deeplab_jax")
    train_three_steps(config, tmp_path, monkeypatch)
    train(config, tmp_path)
    size, batch = "x".join(map(str, config.data.image_size)), config.data.batch_size
    plans = [record.message for record in caplog.records if record.message.startswith("Training ")]
    for plan, steps in zip(plans, (6, 4), strict=True):
        assert "6 classes (background, disk, ring, triangle, star, bar)" in plan
        assert f": {steps} steps of {batch} crops of {size}, {steps * batch / 20:.3g} passes over 20 images" in plan
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(tmp_path))
    assert lines(tmp_path) == lines(workdir)


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(straight, tmp_path, monkeypatch):
    """Sums are rounded in another order there, which six steps amplify: the losses are close."""
    workdir, config, _ = straight
    config = config.copy_and_resolve_references()
    config.mesh.update({"data": 2, "fsdp": 2, "fsdp_min_size": 64})
    train_three_steps(config, tmp_path, monkeypatch)
    config.mesh.update({"data": 4, "fsdp": 1})
    config.train.remat = "units"
    train(config, tmp_path)
    rows = [[row for row in lines(folder) if "eval" not in row] for folder in (tmp_path, workdir)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    np.testing.assert_allclose(*([row["loss"] for row in group] for group in rows), rtol=1e-2)


def test_a_finished_run_only_evaluates_again(straight):
    workdir, config, scores = straight
    before = final_state(workdir)
    assert train(config, workdir) == scores
    jax.tree.map(np.testing.assert_array_equal, before, final_state(workdir))


def test_evaluating_a_workdir_gives_the_trainings_scores(straight):
    workdir, _, scores = straight
    assert evaluate(workdir) == scores


def test_scores_do_not_depend_on_the_evaluation_batch(straight):
    workdir, config, scores = straight
    one_by_one = config.copy_and_resolve_references()
    one_by_one.eval.batch_size = 7
    again = evaluate(workdir, config=one_by_one)
    assert again["num_pixels"] == scores["num_pixels"]
    # Other shapes round differently: a pixel between two classes may change sides.
    np.testing.assert_allclose(again["pixel_accuracy"], scores["pixel_accuracy"], atol=1e-4)


def test_another_config_is_refused_in_the_same_workdir(straight):
    workdir, config, _ = straight
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.5 / 0.02"):
        train(other, workdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.train.update(duration=None), "train.duration is not set"),
        (lambda c: c.data.update(batch_size=None), "data.batch_size is not set"),
        (lambda c: c.data.update(train_split="tarin"), "did you mean train"),
        (lambda c: c.optimizer.update(warmup="6 steps"), "must be shorter than the training"),
    ],
)
def test_a_wrong_config_stops_before_anything_is_written(change, message, tmp_path):
    config = experiment(steps=6)
    change(config)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_without_labeled_pixels_is_rejected_first(tmp_path, monkeypatch):
    original = synthetic.SyntheticSource.__getitem__

    def ignored(self, index):
        example = original(self, index)
        return example | {"label": np.full_like(example["label"], 255)} if self.split == "val" else example

    monkeypatch.setattr(synthetic.SyntheticSource, "__getitem__", ignored)
    with pytest.raises(UserError, match="^synthetic/val has no labeled pixels"):
        train(experiment(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unreached_taps_start_and_stay_at_zero(straight):
    """Rate 2 on the 2x2 features of 32x32 images: all taps but the center fall outside."""
    workdir, *_ = straight
    taps = np.asarray(final_state(workdir)["params"]["aspp"]["branch_atrous2"]["conv"]["kernel"])
    assert np.count_nonzero(taps[1, 1])
    assert np.count_nonzero(taps) == np.count_nonzero(taps[1, 1])


def test_frozen_parts_and_statistics_do_not_change(tmp_path):
    config = experiment(steps=2)
    config.train.ema_decay = None  # averages of equal values are rounded
    config.optimizer.frozen = ("backbone",)
    config.optimizer.weight_decay = 0.1
    config.model.freeze_norm_statistics = True
    config.checkpoint.every = "1 step"
    train(config, tmp_path)
    variables = []
    for step in (1, 2):
        with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
            variables.append(jax.device_get(checkpoints.saved_variables(step)))
    jax.tree.map(np.testing.assert_array_equal, *(v["batch_stats"] for v in variables))
    jax.tree.map(np.testing.assert_array_equal, *(v["params"]["backbone"] for v in variables))
    kernels = [v["params"]["classifier"]["kernel"] for v in variables]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(tmp_path):
    config = experiment(steps=12)
    config.optimizer.learning_rate = 1e30
    config.checkpoint.every = "1 step"
    with pytest.raises(UserError, match=r"^step \d+ is not finite: loss .* learning rate .*; examples: train_000\d\d"):
        train(config, tmp_path)
    (saved,) = (tmp_path / "nonfinite").iterdir()
    step = int(saved.stem.removeprefix("step_"))
    with np.load(saved) as batch:
        assert batch["image"].shape == (8, 32, 32, 3)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == step - 1


@pytest.mark.slow
def test_a_second_stage_trains_at_another_output_stride_with_frozen_statistics(straight, tmp_path):
    """The papers' recipe: stage 1 at stride 16, then stride 8 with its statistics (arXiv 1706.05587, section 4.1)."""
    config = experiment(steps=2, ema_decay=None, init_from=str(straight[0]))
    config.model.output_stride = 8
    config.model.freeze_norm_statistics = True
    train(config, tmp_path)
    before, after = final_state(straight[0]), final_state(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, before["batch_stats"], after["batch_stats"])
    for old, new in zip(jax.tree.leaves(before["params"]), jax.tree.leaves(after["params"]), strict=True):
        assert np.any(old != new)
        assert np.abs(new - old).max() < 0.1  # two steps away from stage 1, not from random weights


@pytest.mark.parametrize("start", ["random", "init_from", pytest.param("teacher", marks=pytest.mark.slow)])
def test_the_step_is_compiled_once(straight, tmp_path, start):
    """It is compiled before the first call, for shapes and shardings that must be those of the call."""
    config = experiment(steps=2)
    config.mesh.data = 2
    if start == "init_from":
        config.train.init_from = str(straight[0])
    if start == "teacher":
        config.loss.teacher = str(straight[0])
    compiled = []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        train(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len([name for name in compiled if "step" in name and "eval" not in name]) == 1, compiled


# ---- The score before the first step, early stopping, longer trainings ----


def test_a_score_before_the_first_step_changes_nothing_else(straight, tmp_path):
    workdir, config, _ = straight
    config = config.copy_and_resolve_references()
    config.eval.before_training, config.log.profile_steps = True, 0
    train(config, tmp_path)
    first, *rest = lines(tmp_path)
    assert first["step"] == 0
    assert first["eval"]["num_images"] == rest[-1]["eval"]["num_images"]
    assert rest == lines(workdir)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(workdir))
    train(config, tmp_path)  # a run that continues has no such score
    assert lines(tmp_path) == [first, *rest]


def test_a_training_without_better_scores_ends_and_can_be_extended(tmp_path, monkeypatch):
    record = checkpoint.Checkpoints.record_score
    scores = {1: 0.1, 2: 0.5}  # later ones are worse
    monkeypatch.setattr(
        checkpoint.Checkpoints, "record_score", lambda self, step, _: record(self, step, scores.get(step, 0.2))
    )
    config = experiment(steps=6, patience=2)
    config.eval.every, config.checkpoint.keep = "1 steps", 9
    assert train(config, tmp_path)["step"] == 4
    evaluated = [row["step"] for row in lines(tmp_path) if "eval" in row]
    assert evaluated == [1, 2, 3, 4]
    before = lines(tmp_path)
    assert train(config, tmp_path)["step"] == 4  # a run that ended only evaluates again
    assert lines(tmp_path) == before
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 4

    # Another checkpoint than the newest gets files of its own.
    newest = (tmp_path / "metrics.json").read_bytes()
    assert evaluate(f"{tmp_path}@2")["step"] == evaluate(tmp_path, checkpoint="2")["step"] == 2
    assert json.loads((tmp_path / "metrics-checkpoint=2.json").read_text())["step"] == 2
    assert (tmp_path / "metrics.json").read_bytes() == newest

    longer = experiment(steps=5, patience=2)  # counts from the extension
    longer.eval.every = "1 steps"
    with pytest.raises(UserError, match="^.* holds a run with train.duration.*; pass --extend to continue it for"):
        train(longer, tmp_path)
    shorter = experiment(steps=3)
    with pytest.raises(UserError, match="has taken 4 steps, more than the 3 of train.duration='3 steps'; --extend"):
        train(shorter, tmp_path, extend=True)
    assert train(longer, tmp_path, extend=True)["step"] == 5
    rates = {row["step"]: row["learning_rate"] for row in lines(tmp_path) if "eval" not in row}
    _, schedule = optimizer.make(longer.optimizer, total_steps=5, parts=PARTS)
    assert rates[5] == pytest.approx(float(schedule(4)), rel=1e-6)
    assert train(longer, tmp_path)["step"] == 5  # its config is the run's now
