"""The training loop."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.data.eval_pipeline import check_labels
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.evaluation.report import Result
from deeplab_jax.files import local_path
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import processes, sharding
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.training.distillation import Teacher
from deeplab_jax.training.initialization import init_from
from deeplab_jax.training.metrics_window import MetricsWindow
from deeplab_jax.training.profile import StepProfiler
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import TrainProgram, build_program
from deeplab_jax.workdir import layout, metrics_log
from deeplab_jax.workdir.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str | pathlib.Path, *, preemption: Preemption | None = None) -> dict[str, Any]:
    """Trains a network and evaluates it. All results are written to `workdir`.

    If the workdir has a checkpoint, training continues from it and ends exactly as it would have without the
    interruption. In a run of several processes, each calls this function with the same config and workdir.

    Args:
      config: see `deeplab_jax.config.base_config`.
      workdir: gets `config.json`, `labels.json`, `data.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
        `metrics.json`, `gallery.png`, `curves.png`, `learning_rate.png`, and `profile/` if `log.profile_steps` is set.
      preemption: notices signals. Default: they are noticed while this function runs.

    Returns:
      The contents of `metrics.json`.

    Raises:
      UserError: the config, the data or the workdir is wrong, or a loss is not finite.
      Preempted: a signal (SIGTERM, Ctrl-C, SIGHUP) stopped the run. The state is saved; call the function again to
        continue.
    """
    workdir = local_path(workdir)
    _validate(config)
    train_source, eval_source = _open_data(config)
    label_set, mesh = train_source.label_set, mesh_lib.make_mesh(config.mesh)
    durations = _durations(config, len(train_source))
    program = build_program(
        config, label_set.num_classes, mesh, total_steps=durations.total, warmup_steps=durations.warmup
    )
    add_teacher = None if config.loss.teacher is None else Teacher(config, label_set, mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(layout.lock(workdir))
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.checkpoint.keep))
        fingerprints = {"train": data.fingerprint(train_source), "evaluate": data.fingerprint(eval_source)}
        layout.write_config(workdir, config, label_set, fingerprints)
        state, notes = _first_state(config, program, checkpoints, durations.total)
        first_step = int(state.step)
        writer = stack.enter_context(_writer(config, workdir, first_step, durations.total, notes))
        profiler = StepProfiler(
            workdir / "profile", config.log.profile_steps, first_step=first_step, total_steps=durations.total
        )
        run = _Run(
            workdir=workdir,
            program=program,
            add_teacher=add_teacher,
            mesh=mesh,
            durations=durations,
            checkpoints=checkpoints,
            writer=writer,
            metrics=MetricsWindow(
                writer, label_set, policy=config.train.nonfinite, folder=workdir / "nonfinite", saved=notes["window"]
            ),
            evaluator=Evaluator(config, program.model, eval_source, mesh),
            label_set=label_set,
            batches=stack.enter_context(contextlib.closing(_train_batches(config, train_source, state))),
            profiler=stack.enter_context(profiler),
            preemption=preemption,
        )
        if notes["evaluation_due"]:
            checkpoints.record_score(first_step, run.evaluate(first_step, state)["mean_iou"])
        state = run.take_steps(first_step, state)
        scores = run.evaluate(durations.total, state)
    return _write_results(config, workdir, program, label_set, scores, durations.total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of a training run, and its steps."""

    workdir: pathlib.Path
    program: TrainProgram
    add_teacher: Teacher | None
    mesh: jax.sharding.Mesh
    durations: "_Durations"
    checkpoints: Checkpoints
    writer: metrics_log.Writer
    metrics: MetricsWindow
    evaluator: Evaluator
    label_set: LabelSet
    batches: Iterator[dict[str, Any]]
    profiler: StepProfiler
    preemption: Preemption

    def take_steps(self, first_step: int, state: TrainState) -> TrainState:
        """Takes the steps after `first_step`, and saves and evaluates the state when due; returns the last state.

        Raises:
          Preempted: a signal stopped the run, and the state is saved.
        """
        durations, metrics, total = self.durations, self.metrics, self.durations.total
        for step in range(first_step + 1, total + 1):
            self.profiler.before_step(step, state)
            batch = next(self.batches)
            arrays = sharding.to_global({"image": batch["image"], "label": batch["label"]}, self.mesh)
            if self.add_teacher is not None:
                arrays = self.add_teacher(arrays)
            self.preemption.is_saved = False
            state, report = self.program.step(state, arrays)
            metrics.add(step, report, batch)

            stops, is_last = self.preemption.reached(step), step == total
            evaluation_due = _is_due(step, durations.evaluate) and not is_last
            if _is_due(step, durations.log) or evaluation_due or is_last:
                metrics.end_at(step)
            is_best = False
            if evaluation_due and not stops:
                metrics.catch_up()
                try:
                    is_best = self.checkpoints.record_score(step, self.evaluate(step, state)["mean_iou"])
                    evaluation_due = False
                except Preempted:  # the run that continues from here evaluates first
                    stops = True
            if stops or is_best or is_last or _is_due(step, durations.save):
                metrics.catch_up()  # before saving, so that no checkpoint holds the result of a loss that is not finite
                with self.writer.pause():
                    notes = {"window": metrics.to_json(), "evaluation_due": evaluation_due}
                    self.checkpoints.save(step, **state.to_items(), notes=notes)
            if stops or is_last:
                self.checkpoints.wait()
                self.preemption.is_saved = True
            if stops:
                raise self.preemption.stopped(f"at step {step} of {total}; the state is saved in {self.workdir}")
        self.profiler.before_step(total + 1, state)
        return state

    def evaluate(self, step: int, state: TrainState) -> dict[str, Any]:
        """Scores the state and logs the scores, outside the measured training time.

        Raises:
          Preempted: a signal asks the run to stop.
        """

        def check_preemption() -> None:
            if self.preemption.stops_now:
                raise self.preemption.stopped(f"while evaluating step {step} of {self.durations.total}")

        with self.writer.pause():
            scores = self.evaluator(state.evaluated_variables, before_batch=check_preemption)
            self.writer.write_evaluation(step, scores, self.label_set)
        return scores


def _open_data(config: ConfigDict) -> tuple[data.Source, data.Source]:
    """Opens the splits to train and evaluate on, and checks that both have labels."""
    train_source = data.open_split(config, config.data.train_split)
    eval_source = data.open_split(config, config.data.eval_split)
    if config.loss.teacher is None:
        check_labels(train_source)
    if config.eval.ignored_pixels == "exclude":
        check_labels(eval_source)
    return train_source, eval_source


def _validate(config: ConfigDict) -> None:
    """Checks the config before any work starts."""
    processes.check_same_config(config)
    config_lib.validate(config)
    if config.data.transform:
        data.find_transform(config.data.transform)
    protocol = data.protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=jax.device_count(),
        processes=jax.process_count(),
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
    )


class _Durations(NamedTuple):
    """Numbers of steps: total, warm-up, between evaluations, checkpoints (None: only at the end) and log lines."""

    total: int
    warmup: int
    evaluate: int | None
    save: int | None
    log: int


def _durations(config: ConfigDict, num_examples: int) -> _Durations:
    sizes = {"batch_size": config.data.batch_size, "num_examples": num_examples}
    total = config_lib.duration_steps(config.train.duration, field="train.duration", **sizes)
    if not total:
        raise UserError(
            "train.duration is not set; set it in the config file or with --config.train.duration='30000 steps'"
            if total is None
            else f"train.duration={config.train.duration!r} must be above 0"
        )
    warmup, evaluate, save = (
        config_lib.duration_steps(text, field=field, total_steps=total, **sizes)
        for field, text in (
            ("optimizer.warmup", config.optimizer.warmup),
            ("eval.every", config.eval.every),
            ("checkpoint.every", config.checkpoint.every),
        )
    )
    return _Durations(total, warmup or 0, evaluate, save, config.log.every_steps)


def _first_state(
    config: ConfigDict, program: TrainProgram, checkpoints: Checkpoints, total_steps: int
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to start from, and the notes of the checkpoint that a run continues from.

    The state is the workdir's newest checkpoint, or else comes from `train.init_from`, or else is random.
    """
    processes.check_same_step(checkpoints.found_step())
    notes = {"window": None, "evaluation_due": False}
    if checkpoints.latest_step() is not None:
        variables, training, saved_notes = checkpoints.restore(**program.shapes.to_items())
        state = program.shapes.with_items(variables=variables, training=training)
        logger.info("Continuing %s from step %d of %d", checkpoints.workdir, int(state.step), total_steps)
        return state, notes | saved_notes
    create = functools.partial(program.random_state, seed=config.train.seed)
    if config.train.init_from is None:
        return create(), notes
    state, report = init_from(create, program.shapes, config.model, config.train.init_from)
    logger.info(report)
    return state, notes


def _train_batches(config: ConfigDict, source, state: TrainState):
    """Returns the training batches. They depend only on the seed and on the number of examples seen."""
    return data.train_batches(
        source,
        config.data,
        seed=config.train.seed,
        examples_seen=int(state.examples_seen),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        pad_color=data.pad_color(config.model.input_mean),
    )


def _writer(
    config: ConfigDict, workdir: pathlib.Path, first_step: int, total_steps: int, notes: dict[str, Any]
) -> metrics_log.Writer:
    return metrics_log.Writer(
        workdir,
        total_steps=total_steps,
        batch_size=config.data.batch_size,
        start_step=first_step,
        repeats_evaluation=notes["evaluation_due"],
        tensorboard=config.log.tensorboard,
        enabled=processes.is_leader(),
    )


def _write_results(
    config: ConfigDict,
    workdir: pathlib.Path,
    program: TrainProgram,
    label_set: LabelSet,
    scores: dict[str, Any],
    total_steps: int,
) -> dict[str, Any]:
    """Writes the results of a finished run; returns the contents of `metrics.json`."""
    result = Result(workdir, scores, label_set, config, total_steps)
    result.save()
    if processes.is_leader():
        visualization.plot_learning_rate(program.learning_rate, total_steps, path=workdir / "learning_rate.png")
        visualization.plot_curves(workdir / "metrics.jsonl", path=workdir / "curves.png")
    return result.values


def _is_due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0
