"""Exact, counted evaluation: every image of a split once, integer counts, labels at their own size."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained, progress
from deeplab_jax.data.eval_pipeline import check_labels, count_batches, label_sizes
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.data.view_protocols import ViewProtocol, Windows
from deeplab_jax.errors import Preempted, UserError
from deeplab_jax.evaluation import report
from deeplab_jax.evaluation.blended_step import make_blended_step
from deeplab_jax.evaluation.details import NUM_WORST, Details
from deeplab_jax.evaluation.partial import EvaluationState, PartialResult, describe_evaluation
from deeplab_jax.evaluation.step import jit_eval_step
from deeplab_jax.files import check_new_folder, open_path
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.parallel.preemption import Preemption
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.choice import choose_step

logger = logging.getLogger(__name__)

#: Number of examples in the gallery of an evaluation.
GALLERY_SIZE = 8


def jit_step(
    config: ConfigDict,
    model: nn.Module,
    mesh: jax.sharding.Mesh,
    label_set: LabelSet,
    *,
    with_confidence: bool = False,
) -> Callable:
    """Returns the `step(variables, batch)` of a config, see `deeplab_jax.evaluation.step.make_eval_step`."""
    protocol = protocol_for(config)
    if isinstance(protocol, Windows) and protocol.is_blended:
        return make_blended_step(config, model, mesh, label_set, with_confidence=with_confidence)
    return jit_eval_step(config, model, mesh, with_confidence=with_confidence)


class Evaluator:
    """Scores a network on a split. It compiles once, so a training run can call it repeatedly.

    Args:
      config: a whole config.
      model: the network.
      source: the split, see `deeplab_jax.data.open_source`.
      mesh: the mesh that variables and batches are split over.
      num_worst: also return the details that a report needs, with this number of images; None skips them, which is
        faster.
      step: the step of `jit_step` without details, for evaluators that share it (default: a new one).
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        source,
        mesh: jax.sharding.Mesh,
        *,
        num_worst: int | None = None,
        step: Callable | None = None,
    ):
        self._config, self._source, self._mesh, self._num_worst = config, source, mesh, num_worst
        self._sizes = None
        self._step = step or jit_step(config, model, mesh, source.label_set, with_confidence=num_worst is not None)
        self._draw = functools.partial(
            data.to_rgb, value_range=config.model.value_range, channels=config.data.display_channels
        )

    def __call__(
        self,
        variables: Any,
        *,
        before_batch: Callable[[], None] | None = None,
        preemption: Preemption | None = None,
        partial: PartialResult | None = None,
    ) -> dict[str, Any]:
        """Scores the whole split.

        Args:
          variables: the variables that `model.apply` takes.
          before_batch: called before each batch; it ends the evaluation by raising an exception.
          preemption: stops the evaluation before the next batch after its signal.
          partial: holds the state of a stopped evaluation, which is continued, and gets that of this one.

        Returns:
          The scores of `deeplab_jax.evaluation.metrics.scores`, `loss`, `num_images`, and `gallery`: image, label and
          prediction (uint8 arrays, the image as RGB) of `GALLERY_SIZE` examples that are spread over the split. With
          `num_worst`, also the scores of `deeplab_jax.evaluation.details.Details.scores`, `details` and `confusion`,
          the matrix of the split.

        Raises:
          UserError: the split has no labeled pixels.
          RuntimeError: the number of images evaluated differs from the size of the split.
          Preempted: a signal stopped the evaluation.
        """
        label_set = self._source.label_set
        state = EvaluationState(label_set.num_classes, self._new_details())
        if partial is not None:
            partial.load(state)
        self._count_batches(state, variables, before_batch, preemption, partial)
        if state.totals.num_images != len(self._source):
            raise RuntimeError(
                f"{state.totals.num_images} images were evaluated, but {self._source.split} has {len(self._source)}"
            )
        scores = state.totals.scores(label_set.class_names)
        if scores["num_pixels"] == 0:  # `check_labels` read only images until one had labels
            raise UserError(f"split {self._source.split} has no pixel to score: all have the ignore label")
        scores |= {"num_images": state.totals.num_images, "gallery": state.gallery}
        if state.details is not None:
            state.details.gather()
            scores |= state.details.scores(label_set.class_names)
            scores |= {"details": state.details, "confusion": state.totals.confusion}
        return scores

    def _count_batches(
        self,
        state: EvaluationState,
        variables: Any,
        before_batch: Callable[[], None] | None,
        preemption: Preemption | None,
        partial: PartialResult | None,
    ) -> None:
        """Counts the batches that the state does not have. See `__call__` for the arguments."""
        batch_size, scales = config_lib.eval_batch_size(self._config), tuple(self._config.eval.scales)
        protocol = protocol_for(self._config)
        if isinstance(protocol, ViewProtocol):
            scales = protocol.view_scales(scales)
            if self._sizes is None:
                self._sizes = label_sizes(self._source)
        batches = data.eval_batches(
            self._source,
            protocol,
            batch_size=batch_size // jax.process_count(),
            scales=scales,
            sizes=self._sizes,
            workers=self._config.data.workers,
            first_batch=state.num_batches,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        total = count_batches(self._source, protocol, batch_size, scales, self._sizes)
        first, previous = state.num_batches, None
        with contextlib.closing(batches):
            for index, batch in enumerate(progress.track(batches, "evaluate", total, completed=first), start=first):
                if before_batch is not None:
                    before_batch()
                if preemption is not None and preemption.reached(index):
                    if previous is not None:
                        self._add(state, *previous)
                    raise _stopped(preemption, state, partial, total)
                arrays = {name: value for name, value in batch.items() if name != "id"}
                result = self._step(variables, sharding.to_global(arrays, self._mesh))
                if previous is not None:  # read one step late, so the device is never idle
                    self._add(state, *previous)
                    if preemption is not None:
                        preemption.is_saved = partial is None
                previous = batch, result
        if previous is not None:
            self._add(state, *previous)
        if preemption is not None:
            preemption.is_saved = True

    def _add(self, state: EvaluationState, batch: dict[str, Any], result: dict[str, jax.Array]) -> None:
        """Adds a batch to the state, and its examples that are due in the gallery. Waits for the step."""
        own = len(self._source) // jax.process_count()  # this process has at least this number of examples
        gallery = sorted({i * own // GALLERY_SIZE for i in range(GALLERY_SIZE)})
        seen = state.num_images
        state.add(batch, result)
        shown = [position - seen for position in gallery if seen <= position < state.num_images]
        if shown:
            found = report.gallery_examples(batch, result["prediction"], self._draw)
            state.gallery += [found[i] for i in shown]

    def _new_details(self) -> Details | None:
        if self._num_worst is None:
            return None
        return Details(
            self._source.label_set.num_classes,
            ignored_pixels=self._config.eval.ignored_pixels,
            num_worst=self._num_worst,
            draw=self._draw,
        )


def _stopped(preemption: Preemption, state: EvaluationState, partial: PartialResult | None, total: int) -> Preempted:
    """Saves the state if there is a place for it; returns the exception that ends the evaluation."""
    saved = "nothing is saved"
    if partial is not None:
        try:
            partial.save(state)
            saved = f"the counts are saved in {partial.folder}"
        except UserError as error:
            logger.warning("the counts are not saved: %s", error)
    return preemption.stopped(f"after {state.num_batches} of {total} batches; {saved}")


def evaluate(
    name_or_path: str | pathlib.Path,
    *,
    config: ConfigDict | None = None,
    split: str | None = None,
    checkpoint: str | None = None,
    report_folder: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Scores a network on a split of a data set.

    Args:
      name_or_path: the workdir of a training run, which can name its checkpoint as in `runs/photos@best`; the name of a
        preset; a folder that `deeplab-jax convert` wrote; or `hf://owner/name`, a network on the Hugging Face Hub.
      config: names the data set and how images are fed. Default for a workdir: the run's own config. For a preset or a
        folder, start from `deeplab_jax.pretrained.preset_config` and set `data.name`.
      split: split of the data set; default: `data.eval_split`.
      checkpoint: checkpoint of a workdir: "newest", "best" or a step; default: the run's `checkpoint.use`.
      report_folder: new or empty folder for a report, see `deeplab_jax.evaluation.report_files.write_report`. This also
        computes the scores of `deeplab_jax.evaluation.details.Details.scores`.

    Returns:
      The scores. For a workdir they are also written to its `metrics.json`, with a `gallery.png` next to it. Scores of
      another split, config or checkpoint than the newest get files of their own, see
      `deeplab_jax.evaluation.report.results_suffix`. If the files cannot be written, a warning says so.

    Raises:
      UserError: the network does not exist or has no checkpoint or no classes, a weight is NaN or infinite, the data
        set is not prepared, or its classes differ from the network's, or the folder of the report is not empty.
    """
    path, named = pretrained.split_checkpoint(name_or_path)
    checkpoint = checkpoint or named
    options = {"config": config, "split": split}
    if report_folder is not None:
        report_folder = open_path(report_folder)
        check_new_folder(report_folder)
        options["num_worst"] = NUM_WORST
    if pretrained.is_workdir(path):
        result = evaluate_workdir(open_path(path), checkpoint=checkpoint, **options)
    else:
        result = evaluate_network(pretrained.load(name_or_path, checkpoint=checkpoint), name_or_path, **options)
    try:
        result.save(report_folder)
    except UserError as error:  # the scores took longer than anything else
        logger.warning("the scores are not saved: %s", error)
    return result.values


def evaluate_workdir(
    workdir: pathlib.Path,
    *,
    config: ConfigDict | None = None,
    split: str | None = None,
    checkpoint: str | None = None,
    num_worst: int | None = None,
    preemption: Preemption | None = None,
) -> report.Result:
    """Scores a checkpoint of a workdir without writing the scores; see `evaluate` and `Evaluator`.

    An evaluation that a signal stops leaves its counts in the workdir, and the next one continues there.
    """
    # Orbax takes a third of a second to import, which other networks do not need.
    from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints

    workdir = layout.last_stage(workdir)
    own_config = layout.read_config(workdir)
    config = own_config if config is None else config
    label_set = layout.read_labels(workdir)
    source, model, mesh = _prepare(config, label_set, split, whose=f"the network in {workdir}")
    chosen = choose_step(workdir, checkpoint or config.checkpoint.use)
    with open_checkpoints(workdir, read_only=True, step=chosen) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{workdir} has no checkpoint yet; let `deeplab-jax train` write one")
        variables = checkpoints.restore_variables(_abstract_on(mesh, model, config))
        step = checkpoints.latest_step()
        digest = layout.checkpoint_digest(workdir, step)
    is_newest = chosen is None or chosen == max(layout.checkpoint_steps(workdir))
    if jax.process_count() == 1:  # arrays of several processes cannot be read by one
        pretrained.check_finite(variables, workdir)
    suffix = report.results_suffix(config, own_config, split=split)
    suffix += "" if is_newest else layout.results_of_checkpoint(step)
    partial = None
    if digest is not None:
        identity = describe_evaluation(config, source, checkpoint=digest, num_worst=num_worst)
        partial = PartialResult(workdir / f"partial_evaluation{suffix}", identity)
    evaluator = Evaluator(config, model, source, mesh, num_worst=num_worst)
    scores = evaluator(variables, preemption=preemption, partial=partial)
    if partial is not None:
        partial.remove()
    return report.Result(
        str(workdir), scores, source.label_set, config, source.split, workdir=workdir, step=step, suffix=suffix
    )


def evaluate_network(
    network: PretrainedNetwork,
    name_or_path: str | pathlib.Path,
    *,
    config: ConfigDict | None = None,
    split: str | None = None,
    num_worst: int | None = None,
    preemption: Preemption | None = None,
) -> report.Result:
    """Scores a loaded network without writing anything; see `evaluate` and `Evaluator`.

    Messages and reports call the network `name_or_path`.
    """
    if network.label_set is None:
        raise UserError(f"{name_or_path} is a {network.model.backbone} backbone without classes; train from it first")
    config = pretrained.preset_config(network) if config is None else config
    source, model, mesh = _prepare(config, network.label_set, split, whose=str(name_or_path))
    variables, _ = pretrained.merge(_abstract_on(mesh, model, config), network.variables)
    scores = Evaluator(config, model, source, mesh, num_worst=num_worst)(variables, preemption=preemption)
    return report.Result(str(name_or_path), scores, source.label_set, config, source.split)


def _prepare(
    config: ConfigDict, label_set: LabelSet, split: str | None, *, whose: str
) -> tuple[Any, nn.Module, jax.sharding.Mesh]:
    """Checks the config and opens the split; returns the split, the network and the mesh."""
    config_lib.validate(config, training=False)  # earlier versions trained with values that are illegal now
    protocol = protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=jax.device_count(),
        processes=jax.process_count(),
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
        slices=mesh_lib.count_slices(jax.devices()),
    )
    source = data.open_split(config, split or config.data.eval_split)
    if config.eval.ignored_pixels == "exclude":
        check_labels(source)
    if source.label_set.class_names != label_set.class_names:
        raise UserError(
            f"{config.data.name} has the classes {', '.join(source.label_set.class_names)}, but {whose} was trained on "
            f"{', '.join(label_set.class_names)}"
        )
    data.check_model(config.model, data.pixels_of(source), source.name)
    data.check_display(config.data, data.pixels_of(source))
    mesh = mesh_lib.make_mesh(config.mesh)
    return source, build_for_mesh(config, label_set.num_classes, mesh, input_sizes=protocol.input_sizes), mesh


def _abstract_on(mesh: jax.sharding.Mesh, model: nn.Module, config: ConfigDict) -> Any:
    return sharding.with_shardings(abstract_variables(model), mesh, fsdp_min_size=config.mesh.fsdp_min_size)
