"""The training loop."""

import contextlib
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import checkpoint, data, losses, metrics, optimizer, pretrained, sharding, visualize, writers
from deeplab_jax import config as config_lib
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import Evaluator, open_split, save_scores
from deeplab_jax.halos import build_for_mesh
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import PARTS
from deeplab_jax.steps import make_train_step, train_compiler_options
from deeplab_jax.train_state import TrainState


def train(config: ConfigDict, workdir: pathlib.Path, *, console: Console | None = None) -> dict[str, Any]:
    """Trains a network, evaluates it, and leaves everything in `workdir`.

    A workdir that has a checkpoint is continued from it, to the same end as without the interruption.

    Args:
      config: see `deeplab_jax.config.base_config`.
      workdir: gets `config.json`, `labels.json`, `checkpoints/`, `metrics.jsonl`, TensorBoard events, `metrics.json`,
        `gallery.png`, `curves.png` and `learning_rate.png`; `profile/` with `log.profile_steps`.
      console: where progress is shown; None is silent.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: something in the config, the data or the workdir is wrong.
    """
    # ---- What the config means, checked before any work ----
    config_lib.validate(config, devices=jax.device_count(), processes=jax.process_count())
    train_source = open_split(config, config.data.train_split)
    eval_source = open_split(config, config.data.eval_split)
    labels = train_source.labels
    total_steps, warmup_steps, every = _durations(config, len(train_source))
    mesh = sharding.make_mesh(config.mesh)
    model = build_for_mesh(config, labels.num_classes, mesh)
    loss_fn = losses.make_loss(config.loss, num_classes=labels.num_classes)
    learning_rate = optimizer.make_schedule(config.optimizer, total_steps, warmup_steps)
    update_rule = optimizer.make_optimizer(config.optimizer, total_steps, warmup_steps, parts=PARTS)
    checkpoint.begin_workdir(workdir, config, labels)

    is_writer = jax.process_index() == 0
    with checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints:
        # ---- State: the workdir's newest checkpoint, or else init_from, or else random ----
        shapes = TrainState.shapes(model, update_rule)
        shardings = sharding.state_shardings(shapes, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
        state = TrainState.create_on(shardings, model, update_rule, seed=config.train.seed)
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state)
            _say(console, f"Continuing {workdir} from step {int(state.step)} of {total_steps}")
        elif config.train.init_from is not None:
            state, report = pretrained.init_from(state, config.model, config.train.init_from, console=console)
            _say(console, report)
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
        train_step = jax.jit(
            make_train_step(
                model,
                update_rule,
                loss_fn,
                learning_rate=learning_rate,
                void=config.eval.void,
                accumulate=config.train.accumulate_steps,
                shardings=shardings,
            ),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
            compiler_options=train_compiler_options(config.train.remat, jax.default_backend()),
        )
        evaluator = Evaluator(config, model, eval_source, mesh)
        writer = writers.Writer(
            workdir,
            total_steps=total_steps,
            batch_size=config.data.batch_size,
            start_step=first_step,
            tensorboard=config.log.tensorboard,
            console=console,
            enabled=is_writer,
        )
        profile = _Profile(workdir / "profile", config.log.profile_steps, first_step, total_steps)
        with writer, contextlib.closing(batches), contextlib.closing(profile):
            log = _TrainLog(writer, labels)
            for step in range(first_step + 1, total_steps + 1):
                profile.begin_step(step, state)
                batch = next(batches)
                batch = sharding.to_global({"image": batch["image"], "label": batch["label"]}, mesh)
                state, report = train_step(state, batch)
                log.add(report)
                evaluates = _due(step, every["eval"]) and step < total_steps
                saves = _due(step, every["checkpoint"]) or step == total_steps
                # A checkpoint ends a logging window too, so that a continued run logs the same windows.
                if _due(step, every["log"]) or evaluates or saves:
                    log.end_window(step, wait=evaluates or saves)
                if evaluates:
                    with writer.pause():
                        scores = evaluator(state.variables, console=console, gallery=config.log.gallery_images)
                        writer.write_evaluation(step, scores, labels)
                if saves:
                    with writer.pause():
                        checkpoints.save(state)
            profile.begin_step(total_steps + 1, state)

            # ---- The end ----
            with writer.pause():
                scores = evaluator(state.variables, console=console, gallery=config.log.gallery_images)
                writer.write_evaluation(total_steps, scores, labels)
    scores = save_scores(workdir, scores, labels, config, total_steps)
    if is_writer:
        visualize.plot_learning_rate(learning_rate, total_steps, path=workdir / "learning_rate.png")
        visualize.plot_curves(workdir / "metrics.jsonl", path=workdir / "curves.png")
    return scores


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


class _TrainLog:
    """Sums the steps' reports; reads each one step late, so that the host never waits on a step just dispatched."""

    def __init__(self, writer: writers.Writer, labels: LabelSet):
        self._writer, self._labels = writer, labels
        self._totals = metrics.Totals(labels.num_classes)
        self._unread, self._window_end = None, None

    def add(self, report: dict[str, jax.Array]) -> None:
        """Takes the report of a step just dispatched, and reads that of the step before."""
        self._read()
        self._unread = report

    def end_window(self, step: int, *, wait: bool) -> None:
        """Has the means since the last window's end written: now, or when the report of `step` is read."""
        self._window_end = step
        if wait:
            self._read()

    def _read(self) -> None:
        report, self._unread = self._unread, None
        if report is None:
            return
        self._totals.add(report)
        if self._window_end is not None:
            scores = self._totals.scores(self._labels.class_names)
            values = {name: scores[name] for name in ("loss", "mean_iou", "pixel_accuracy")}
            values |= {name: float(report[name]) for name in ("learning_rate", "gradient_norm")}
            self._writer.write_train(self._window_end, values)
            self._totals.reset()
            self._window_end = None


def _durations(config: ConfigDict, num_examples: int) -> tuple[int, int, dict[str, int | None]]:
    """Steps in all, steps of warm-up, and steps between logs, evaluations and checkpoints."""
    sizes = {"batch_size": config.data.batch_size, "num_examples": num_examples}
    total = config_lib.duration_steps(config.train, **sizes)
    if not total:
        raise UserError("the length of the training is not set; set one of train.steps, train.epochs, train.examples")
    warmup = config_lib.duration_steps(config.optimizer, "warmup_", total_steps=total, **sizes) or 0
    every = {"log": config.log.every_steps}
    for group in ("eval", "checkpoint"):
        every[group] = config_lib.duration_steps(config[group], "every_", total_steps=total, **sizes)
    return total, warmup, every


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, soft_wrap=True, highlight=False)
