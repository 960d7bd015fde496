"""The training loop."""

import contextlib
import functools
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import config as config_lib
from deeplab_jax import data, visualization
from deeplab_jax.data.registry import open_split
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation.evaluator import GALLERY_IMAGES, Evaluator
from deeplab_jax.evaluation.report import save_scores
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import processes, sharding
from deeplab_jax.training import initialization
from deeplab_jax.training import program as program_lib
from deeplab_jax.training.distillation import Teacher
from deeplab_jax.training.metrics_window import TrainLog
from deeplab_jax.training.program import TrainProgram
from deeplab_jax.training.state import TrainState
from deeplab_jax.workdir import checkpoint, layout, metrics_log


def train(config: ConfigDict, workdir: pathlib.Path, *, console: Console | None = None) -> dict[str, Any]:
    """Trains a network, evaluates it, and leaves everything in `workdir`.

    A workdir that has a checkpoint is continued from it, to the same end as without the interruption. In a run of many
    processes, each calls this with the same config and workdir.

    Args:
      config: see `deeplab_jax.config.base_config`.
      workdir: gets `config.json`, `labels.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `metrics.json`,
        `gallery.png`, `curves.png` and `learning_rate.png`; `profile/` with `log.profile_steps`.
      console: where progress is shown; None is silent.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: something in the config, the data or the workdir is wrong, or a loss is not finite.
      Preempted: SIGTERM came; the state is saved, and the same call continues the run.
    """
    if not processes.is_leader():
        console = None
    # ---- What the config means, checked before any work ----
    processes.check_same_config(config)
    config_lib.validate(config)
    mesh_lib.validate_mesh(config, devices=jax.device_count(), processes=jax.process_count())
    train_source = open_split(config, config.data.train_split)
    eval_source = open_split(config, config.data.eval_split)
    label_set = train_source.label_set
    total_steps, warmup_steps, every = _durations(config, len(train_source))
    mesh = mesh_lib.make_mesh(config.mesh)
    program = program_lib.build(config, label_set.num_classes, mesh, total_steps=total_steps, warmup_steps=warmup_steps)
    teacher = None if config.loss.teacher is None else Teacher(config, label_set, mesh, console=console)

    with (
        layout.held(workdir),
        processes.Preemption() as preemption,
        checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep, console=console) as checkpoints,
    ):
        layout.begin(workdir, config, label_set)
        processes.check_same_step(checkpoints.found_step)
        # ---- State: the workdir's newest checkpoint, or else init_from, or else random ----
        if checkpoints.latest_step is None:
            state, window = _new_state(config, program, console), None
        else:
            state, notes = checkpoints.restore(program.shapes)
            window = notes["window"]
            _say(console, f"Continuing {workdir} from step {int(state.step)} of {total_steps}")
        first_step = int(state.step)

        # ---- Data: a pure function of seed and position ----
        batches = data.train_batches(
            train_source,
            config.data,
            seed=config.train.seed,
            examples_seen=int(state.examples_seen),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            pad_color=data.pad_color(config.model.input_mean),
        )

        # ---- The loop ----
        evaluator = Evaluator(config, program.model, eval_source, mesh)
        writer = metrics_log.Writer(
            workdir,
            total_steps=total_steps,
            batch_size=config.data.batch_size,
            start_step=first_step,
            tensorboard=config.log.tensorboard,
            console=console,
            enabled=processes.is_leader(),
        )

        def evaluate(step: int, state: TrainState) -> dict[str, Any]:
            with writer.pause():
                scores = evaluator(state.evaluated_variables, console=console, gallery=GALLERY_IMAGES)
                writer.write_evaluation(step, scores, label_set)
            return scores

        profile = _Profile(workdir / "profile", config.log.profile_steps, first_step, total_steps)
        with writer, contextlib.closing(batches), contextlib.closing(profile):
            log = TrainLog(
                writer, label_set, policy=config.train.nonfinite, folder=workdir / "nonfinite", console=console
            )
            if window is not None:
                log.resume(window)
            for step in range(first_step + 1, total_steps + 1):
                profile.begin_step(step, state)
                batch = next(batches)
                arrays = sharding.to_global({"image": batch["image"], "label": batch["label"]}, mesh)
                if teacher is not None:
                    arrays = teacher(arrays)
                state, report = program.step(state, arrays)
                log.add(step, report, batch)
                stops, evaluates = preemption.reached(step), _due(step, every["eval"]) and step < total_steps
                if _due(step, every["log"]) or evaluates or step == total_steps:
                    log.end_window(step)
                is_best = False
                if evaluates:
                    log.catch_up()
                    is_best = checkpoints.is_best(step, evaluate(step, state)["mean_iou"])
                if stops or is_best or _due(step, every["checkpoint"]) or step == total_steps:
                    # Read before it is saved: no checkpoint holds what a loss that is not finite has made.
                    log.catch_up()
                    with writer.pause():
                        checkpoints.save(state, {"window": log.open_window()})
                if stops:
                    checkpoints.wait()
                    raise Preempted(f"stopped by SIGTERM at step {step} of {total_steps}, which is saved in {workdir}")
            profile.begin_step(total_steps + 1, state)

            # ---- The end ----
            scores = evaluate(total_steps, state)
    scores = save_scores(workdir, scores, label_set, config, total_steps)
    if processes.is_leader():
        visualization.plot_learning_rate(program.learning_rate, total_steps, path=workdir / "learning_rate.png")
        visualization.plot_curves(workdir / "metrics.jsonl", path=workdir / "curves.png")
    return scores


def _new_state(config: ConfigDict, program: TrainProgram, console: Console | None) -> TrainState:
    """The state before the first step: random, but for what `train.init_from` gives."""
    create = functools.partial(program.random_state, seed=config.train.seed)
    if config.train.init_from is None:
        return create()
    state, report = initialization.init_from(
        create, program.shapes, config.model, config.train.init_from, console=console
    )
    _say(console, report)
    return state


class _Profile:
    """Traces `count` steps into `folder`: those after the first two, which compile and fill the pipeline."""

    def __init__(self, folder: pathlib.Path, count: int, first_step: int, total_steps: int):
        self._folder, self._running = folder, False
        self._begin = first_step + 3
        self._end = min(self._begin + count, total_steps + 1)

    def begin_step(self, step: int, state: TrainState) -> None:
        """Starts or ends the trace if it is due before this step; waits for `state`, so that no other step is in it."""
        if self._begin < self._end and step in (self._begin, self._end):
            jax.block_until_ready(state)
            if step == self._end:
                self.close()
            else:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # the interpreter's calls would be most of the trace
                # Perfetto opens `perfetto_trace.json.gz`, TensorBoard reads the other files.
                jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
                self._running = True

    def close(self) -> None:
        """Ends the trace if it is running, which it is here after an error."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _durations(config: ConfigDict, num_examples: int) -> tuple[int, int, dict[str, int | None]]:
    """Steps in all, steps of warm-up, and steps between logs, evaluations and checkpoints."""
    sizes = {"batch_size": config.data.batch_size, "num_examples": num_examples}
    total = config_lib.duration_steps(config.train.duration, field="train.duration", **sizes)
    if not total:
        raise UserError(
            "train.duration is not set; set it in the config file or with --config.train.duration='30000 steps'"
            if total is None
            else f"train.duration={config.train.duration!r} must be above 0"
        )
    sizes["total_steps"] = total
    warmup = config_lib.duration_steps(config.optimizer.warmup, field="optimizer.warmup", **sizes) or 0
    every = {"log": config.log.every_steps}
    for group in ("eval", "checkpoint"):
        every[group] = config_lib.duration_steps(config[group].every, field=f"{group}.every", **sizes)
    return total, warmup, every


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, soft_wrap=True, highlight=False)
