"""The training loop."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.evaluation.report import Result, save_gallery
from deeplab_jax.files import open_path
from deeplab_jax.labels import LabelSet
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import processes, sharding
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.training import norm_statistics, plan
from deeplab_jax.training.checks import check_training
from deeplab_jax.training.class_weights import with_class_weights
from deeplab_jax.training.distillation import Teacher
from deeplab_jax.training.early_stopping import Patience
from deeplab_jax.training.initialization import first_state
from deeplab_jax.training.metrics_window import MetricsWindow
from deeplab_jax.training.profile import StepProfiler
from deeplab_jax.training.programs import Programs
from deeplab_jax.training.sources import open_sources
from deeplab_jax.training.stages import train_stages
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import TrainProgram, build_program
from deeplab_jax.workdir import layout, metrics_log
from deeplab_jax.workdir.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from deeplab_jax.workdir.checkpoint import Checkpoints
from deeplab_jax.workdir.runs import finished_scores

logger = logging.getLogger(__name__)

# In the first steps, most networks predict one class. Shorter runs end before this says anything about them.
_FIRST_STEPS = 50


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    preemption: Preemption | None = None,
    extend: bool = False,
    programs: Programs | None = None,
    skip_finished: bool = False,
) -> dict[str, Any]:
    """Trains a network and evaluates it. All results are written to `workdir`.

    If the workdir has a checkpoint, training continues from it and ends exactly as it would have without the
    interruption. In a run of several processes, each calls this function with the same config and workdir. If the
    config has stages, they are trained one after another, see `deeplab_jax.training.stages.train_stages`.

    Args:
      config: see `deeplab_jax.config.base_config`.
      workdir: gets `config.json`, `labels.json`, `data.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events,
        `metrics.json`, `gallery.png`, `curves.png`, `learning_rate.png`, and `profile/` if `log.profile_steps` is set.
      preemption: notices signals. Default: they are noticed while this function runs.
      extend: continue a run, also a finished one, for another `train.duration` than it started with. The learning rate
        goes on where the schedule of the new duration is at the current step, and other durations that are percentages
        refer to the new one too.
      programs: compiled programs to share with other runs (default: the run compiles its own).
      skip_finished: return the results of a run that is finished, instead of evaluating its last state again.

    Returns:
      The contents of `metrics.json`.

    Raises:
      UserError: the config, the data or the workdir is wrong, or a loss is not finite.
      Preempted: a signal (SIGTERM, Ctrl-C, SIGHUP) stopped the run. The state is saved; call the function again to
        continue.
    """
    workdir = open_path(workdir)
    check_training(config)
    _warn_of_unused_fields(config)
    options = {"preemption": preemption, "programs": programs}
    if not config.stages:
        return _train(config, workdir, extend=extend, skip_finished=skip_finished, **options)
    if extend:
        raise UserError(
            f"a run in stages cannot be extended; extend its last stage: --config {layout.last_stage(workdir)}/"
            f"config.json --workdir {layout.last_stage(workdir)} --extend --config.train.duration=..."
        )
    return train_stages(config, workdir, functools.partial(_train, extend=False, skip_finished=True, **options))


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    preemption: Preemption | None,
    programs: Programs | None,
    extend: bool,
    skip_finished: bool,
) -> dict[str, Any]:
    """Trains a valid config without stages; see `train`."""
    config, sources = open_sources(config)
    config = with_class_weights(config, sources.train)
    label_set, mesh = sources.train.label_set, mesh_lib.make_mesh(config.mesh)
    durations = plan.durations(config, len(sources.train))
    steps = {"total_steps": durations.total, "warmup_steps": durations.warmup}
    fingerprints = sources.fingerprints()
    if skip_finished and (scores := finished_scores(workdir)) is not None:
        layout.check_same_run(workdir, config, fingerprints)
        logger.info("%s is finished: mean IoU %.4f", workdir, scores["mean_iou"])
        return scores
    build = build_program if programs is None else programs.train_program
    dtype = data.pixels_of(sources.train).dtype
    program = build(config, label_set.num_classes, mesh, image_dtype=dtype, **steps)
    eval_step = None if programs is None else programs.eval_step(config, program.model, mesh, label_set)
    add_teacher = None if config.loss.teacher is None else Teacher(config, label_set, mesh)
    with contextlib.ExitStack() as stack:
        check_lock = stack.enter_context(layout.lock(workdir))
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        checkpoints = stack.enter_context(open_checkpoints(workdir, keep=config.checkpoint.keep, check_lock=check_lock))
        layout.write_config(workdir, config, label_set, fingerprints, extend=extend)
        state, notes = first_state(config, program, checkpoints, durations.total)
        first_step = int(state.step)
        patience = Patience(config.train.patience, 0 if extend else notes["stale"])
        if first_step < durations.total and not patience.is_exhausted:
            logger.info(plan.describe(config, sources, durations.total - first_step))
        # A run that ended evaluates its last state again, and one that starts again the state before the first step.
        repeats_evaluation = notes["evaluation_due"] or patience.is_exhausted or first_step == 0
        writer = stack.enter_context(_writer(config, workdir, first_step, durations.total, repeats_evaluation))
        run = _Run(
            workdir=workdir,
            program=program,
            add_teacher=add_teacher,
            mesh=mesh,
            durations=durations,
            checkpoints=checkpoints,
            writer=writer,
            metrics=_metrics_window(config, workdir, writer, label_set, durations, saved=notes["window"]),
            evaluator=Evaluator(config, program.model, sources.evaluate, mesh, step=eval_step),
            label_set=label_set,
            batches=stack.enter_context(contextlib.closing(sources.train_batches(config, state))),
            profiler=stack.enter_context(_profiler(config, workdir, first_step, durations.total)),
            preemption=preemption,
            patience=patience,
            precise_norm_batches=config.train.precise_norm_batches,
            accumulate_steps=config.train.accumulate_steps,
        )
        if config.eval.before_training and first_step == 0:
            run.draw(run.evaluate(0, state))
        last_step, scores = run.complete(first_step, state, evaluates_first=notes["evaluation_due"])
    return _write_results(config, workdir, program, label_set, scores, last_step, durations.total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """The parts of a training run, and its steps."""

    workdir: pathlib.Path
    program: TrainProgram
    add_teacher: Teacher | None
    mesh: jax.sharding.Mesh
    durations: plan.Durations
    checkpoints: Checkpoints | BucketCheckpoints
    writer: metrics_log.Writer
    metrics: MetricsWindow
    evaluator: Evaluator
    label_set: LabelSet
    batches: Iterator[dict[str, Any]]
    profiler: StepProfiler
    preemption: Preemption
    patience: Patience
    precise_norm_batches: int
    accumulate_steps: int

    def complete(self, first_step: int, state: TrainState, *, evaluates_first: bool) -> tuple[int, dict[str, Any]]:
        """Takes the steps after `first_step`; returns the last step and its scores.

        Raises:
          Preempted: a signal stopped the run, and the state is saved.
        """
        last_step, scores = first_step, None
        if evaluates_first:
            scores, _ = self.evaluate_and_record(first_step, state)
        if not self.patience.is_exhausted:
            last_step, state, scores = self.take_steps(first_step, state)
        return last_step, self.evaluate(last_step, state) if scores is None else scores

    def take_steps(self, first_step: int, state: TrainState) -> tuple[int, TrainState, dict[str, Any] | None]:
        """Takes the steps after `first_step`, and saves and evaluates the state when due.

        Returns:
          The last step, its state, and its scores if it was evaluated because the run's patience ended there.

        Raises:
          Preempted: a signal stopped the run, and the state is saved.
        """
        durations, metrics, total = self.durations, self.metrics, self.durations.total
        last_step, scores = total, None
        for step in range(first_step + 1, total + 1):
            self.profiler.before_step(step, state)
            batch = next(self.batches)
            read = {name: batch[name] for name in self.program.batch_shapes if name in batch}
            arrays = sharding.to_global(read, self.mesh)
            if self.add_teacher is not None:
                arrays = self.add_teacher(arrays)
            self.preemption.is_saved = False
            state, report = self.program.step(state, arrays)
            metrics.add(step, report, batch)

            stops, is_last = self.preemption.reached(step), step == total
            evaluation_due = plan.is_due(step, durations.evaluate) and not is_last
            if plan.is_due(step, durations.log) or evaluation_due or is_last:
                metrics.end_at(step)
            if is_last and self.precise_norm_batches:
                state = self.with_precise_statistics(state)
            is_best = False
            if evaluation_due and not stops:
                metrics.catch_up()
                try:
                    scores, is_best = self.evaluate_and_record(step, state)
                    evaluation_due, is_last = False, self.patience.is_exhausted
                except Preempted:  # the run that continues from here evaluates first
                    stops = True
            if stops or is_best or is_last or plan.is_due(step, durations.save):
                metrics.catch_up()  # before saving, so that no checkpoint holds the result of a loss that is not finite
                with self.writer.pause():
                    notes = {"window": metrics.to_json(), "evaluation_due": evaluation_due}
                    notes |= {"stale": self.patience.stale} if self.patience.stale else {}
                    self.checkpoints.save(step, **state.to_items(), notes=notes)
            if stops or is_last:
                self.checkpoints.wait()
                self.preemption.is_saved = True
            if stops:
                raise self.preemption.stopped(f"at step {step} of {total}; the state is saved in {self.workdir}")
            if self.patience.is_exhausted:
                logger.info("step %d/%d  no better mean IoU in %d evaluations; the training ends", step, total,
                            self.patience.stale)  # fmt: skip
                last_step = step
                break
        self.profiler.before_step(last_step + 1, state)
        return last_step, state, scores if self.patience.is_exhausted else None

    def evaluate_and_record(self, step: int, state: TrainState) -> tuple[dict[str, Any], bool]:
        """Does what `evaluate` does and keeps the best score; returns the scores and whether they are the best."""
        scores = self.evaluate(step, state)
        is_best = self.checkpoints.record_score(step, scores["mean_iou"])
        self.patience.record(is_best=is_best)
        self.draw(scores)
        return scores, is_best

    def draw(self, scores: dict[str, Any]) -> None:
        """Draws the curves and the gallery of an evaluation, which the next one replaces."""
        if processes.is_leader():
            with self.writer.pause():
                visualization.plot_curves(self.workdir / metrics_log.METRICS_FILE, path=self.workdir / "curves.png")
                save_gallery(scores["gallery"], self.label_set, self.workdir / "gallery.png")

    def with_precise_statistics(self, state: TrainState) -> TrainState:
        """Returns the state with the statistics that its evaluated variables have on the next training batches."""
        variables, shardings = state.evaluated_variables, self.program.shardings
        moments = norm_statistics.make_moments_function(
            self.program.model, num_parts=self.accumulate_steps, mesh=self.mesh
        )
        images = (
            sharding.to_global({"image": next(self.batches)["image"]}, self.mesh)["image"]
            for _ in range(self.precise_norm_batches)
        )
        with self.writer.pause():
            rng = jax.random.fold_in(state.rng, state.step)
            stats = norm_statistics.recompute_statistics(moments, variables, images, rng)
        stats = jax.device_put(stats, shardings.batch_stats)
        if state.ema_variables is None:
            return state.replace(batch_stats=stats)
        return state.replace(ema_variables=state.ema_variables | {"batch_stats": stats})

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


def _warn_of_unused_fields(config: ConfigDict) -> None:
    for name, each in (config_lib.stage_configs(config) or {"": config}).items():
        if unused := config_lib.unused_fields(each):
            stage = f"stage {name} of " if name else ""
            logger.warning("%sthe config sets fields that have no effect: %s", stage, ", ".join(unused))


def _writer(
    config: ConfigDict, workdir: pathlib.Path, first_step: int, total_steps: int, repeats_evaluation: bool
) -> metrics_log.Writer:
    return metrics_log.Writer(
        workdir,
        total_steps=total_steps,
        batch_size=config.data.batch_size,
        start_step=first_step,
        repeats_evaluation=repeats_evaluation,
        config=config,
        enabled=processes.is_leader(),
    )


def _metrics_window(
    config: ConfigDict,
    workdir: pathlib.Path,
    writer: metrics_log.Writer,
    label_set: LabelSet,
    durations: plan.Durations,
    *,
    saved: dict[str, Any] | None,
) -> MetricsWindow:
    return MetricsWindow(
        writer,
        label_set,
        policy=config.train.nonfinite,
        folder=workdir / "nonfinite",
        saved=saved,
        first_steps=max(durations.warmup, durations.total // 10, _FIRST_STEPS),
    )


def _profiler(config: ConfigDict, workdir: pathlib.Path, first_step: int, total_steps: int) -> StepProfiler:
    return StepProfiler(workdir / "profile", config.log.profile_steps, first_step=first_step, total_steps=total_steps)


def _write_results(
    config: ConfigDict,
    workdir: pathlib.Path,
    program: TrainProgram,
    label_set: LabelSet,
    scores: dict[str, Any],
    last_step: int,
    total_steps: int,
) -> dict[str, Any]:
    """Writes the results of a finished run; returns the contents of `metrics.json`."""
    result = Result(str(workdir), scores, label_set, config, config.data.eval_split, workdir=workdir, step=last_step)
    result.save()
    if processes.is_leader():
        visualization.plot_learning_rate(program.learning_rate, total_steps, path=workdir / "learning_rate.png")
        visualization.plot_curves(workdir / metrics_log.METRICS_FILE, path=workdir / "curves.png")
    return result.values
