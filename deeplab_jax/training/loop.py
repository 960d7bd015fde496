"""The training loop."""

import contextlib
import functools
import logging
import pathlib
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation.evaluator import Evaluator
from deeplab_jax.evaluation.report import save_scores
from deeplab_jax.files import local_path
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import processes, sharding
from deeplab_jax.training.distillation import Teacher
from deeplab_jax.training.initialization import init_from
from deeplab_jax.training.metrics_window import MetricsWindow
from deeplab_jax.training.profile import StepProfiler
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import TrainProgram, build_program
from deeplab_jax.workdir import layout, metrics_log
from deeplab_jax.workdir.checkpoint import Checkpoints

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a network and evaluates it. All results are written to `workdir`.

    If the workdir has a checkpoint, training continues from it and ends exactly as it would have without the
    interruption. In a run of several processes, each calls this function with the same config and workdir.

    Args:
      config: see `deeplab_jax.config.base_config`.
      workdir: gets `config.json`, `labels.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `metrics.json`,
        `gallery.png`, `curves.png`, `learning_rate.png`, and `profile/` if `log.profile_steps` is set.

    Returns:
      The contents of `metrics.json`.

    Raises:
      UserError: the config, the data or the workdir is wrong, or a loss is not finite.
      Preempted: the process received SIGTERM. The state is saved; call the function again to continue.
    """
    workdir = local_path(workdir)
    _validate(config)
    train_source = data.open_split(config, config.data.train_split)
    eval_source = data.open_split(config, config.data.eval_split)
    label_set, mesh = train_source.label_set, mesh_lib.make_mesh(config.mesh)
    durations = _durations(config, len(train_source))
    total_steps = durations.total
    program = build_program(config, label_set.num_classes, mesh, total_steps=total_steps, warmup_steps=durations.warmup)
    add_teacher = None if config.loss.teacher is None else Teacher(config, label_set, mesh)

    with contextlib.ExitStack() as stack:
        stack.enter_context(layout.lock(workdir))
        preemption = stack.enter_context(processes.Preemption())
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.checkpoint.keep))
        layout.write_config(workdir, config, label_set)
        state, window = _first_state(config, program, checkpoints, total_steps)
        first_step = int(state.step)
        writer = stack.enter_context(_writer(config, workdir, first_step, total_steps))
        metrics = MetricsWindow(
            writer, label_set, policy=config.train.nonfinite, folder=workdir / "nonfinite", saved=window
        )
        evaluate = functools.partial(_evaluate, Evaluator(config, program.model, eval_source, mesh), writer, label_set)
        batches = stack.enter_context(contextlib.closing(_train_batches(config, train_source, state)))
        profiler = StepProfiler(
            workdir / "profile", config.log.profile_steps, first_step=first_step, total_steps=total_steps
        )
        stack.enter_context(profiler)

        for step in range(first_step + 1, total_steps + 1):
            profiler.before_step(step, state)
            batch = next(batches)
            arrays = sharding.to_global({"image": batch["image"], "label": batch["label"]}, mesh)
            state, report = program.step(state, arrays if add_teacher is None else add_teacher(arrays))
            metrics.add(step, report, batch)

            stops, is_last = preemption.reached(step), step == total_steps
            evaluates = _is_due(step, durations.evaluate) and not is_last
            if _is_due(step, config.log.every_steps) or evaluates or is_last:
                metrics.end_at(step)
            is_best = False
            if evaluates:
                metrics.catch_up()
                is_best = checkpoints.record_score(step, evaluate(step, state)["mean_iou"])
            if stops or is_best or is_last or _is_due(step, durations.save):
                metrics.catch_up()  # before saving, so that no checkpoint holds the result of a loss that is not finite
                with writer.pause():
                    checkpoints.save(step, **state.to_items(), notes={"window": metrics.to_json()})
            if stops:
                checkpoints.wait()
                raise Preempted(f"stopped by SIGTERM at step {step} of {total_steps}; the state is saved in {workdir}")

        profiler.before_step(total_steps + 1, state)
        scores = evaluate(total_steps, state)
    scores = save_scores(workdir, scores, label_set, config, total_steps)
    if processes.is_leader():
        visualization.plot_learning_rate(program.learning_rate, total_steps, path=workdir / "learning_rate.png")
        visualization.plot_curves(workdir / "metrics.jsonl", path=workdir / "curves.png")
    return scores


def _validate(config: ConfigDict) -> None:
    """Checks the config before any work starts."""
    processes.check_same_config(config)
    config_lib.validate(config)
    protocol = data.protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=jax.device_count(),
        processes=jax.process_count(),
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
    )


class _Durations(NamedTuple):
    """Numbers of steps: total, warm-up, between evaluations, between checkpoints (None: only at the end)."""

    total: int
    warmup: int
    evaluate: int | None
    save: int | None


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
    return _Durations(total, warmup or 0, evaluate, save)


def _first_state(
    config: ConfigDict, program: TrainProgram, checkpoints: Checkpoints, total_steps: int
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the state to start from, and the open metrics window if a run continues.

    The state is the workdir's newest checkpoint, or else comes from `train.init_from`, or else is random.
    """
    processes.check_same_step(checkpoints.found_step())
    if checkpoints.latest_step() is not None:
        variables, training, notes = checkpoints.restore(**program.shapes.to_items())
        state = program.shapes.with_items(variables=variables, training=training)
        logger.info("Continuing %s from step %d of %d", checkpoints.workdir, int(state.step), total_steps)
        return state, notes["window"]
    create = functools.partial(program.random_state, seed=config.train.seed)
    if config.train.init_from is None:
        return create(), None
    state, report = init_from(create, program.shapes, config.model, config.train.init_from)
    logger.info(report)
    return state, None


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


def _writer(config: ConfigDict, workdir: pathlib.Path, first_step: int, total_steps: int) -> metrics_log.Writer:
    return metrics_log.Writer(
        workdir,
        total_steps=total_steps,
        batch_size=config.data.batch_size,
        start_step=first_step,
        tensorboard=config.log.tensorboard,
        enabled=processes.is_leader(),
    )


def _evaluate(
    evaluator: Evaluator, writer: metrics_log.Writer, label_set, step: int, state: TrainState
) -> dict[str, Any]:
    """Scores the state and logs the scores, outside the measured training time."""
    with writer.pause():
        scores = evaluator(state.evaluated_variables)
        writer.write_evaluation(step, scores, label_set)
    return scores


def _is_due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0
