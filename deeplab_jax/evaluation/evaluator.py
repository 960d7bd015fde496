"""Exact, counted evaluation: every image of a split once, integer counts, labels at their own size."""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained, progress
from deeplab_jax.data.eval_pipeline import check_labels, count_batches, label_sizes
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.data.view_protocols import ViewProtocol
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics, report
from deeplab_jax.evaluation.details import NUM_WORST, Details
from deeplab_jax.evaluation.step import jit_eval_step
from deeplab_jax.files import check_new_folder, open_path
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.workdir import layout
from deeplab_jax.workdir.choice import choose_step

logger = logging.getLogger(__name__)

#: Number of examples in the gallery of an evaluation.
GALLERY_SIZE = 8


class Evaluator:
    """Scores a network on a split. It compiles once, so a training run can call it repeatedly.

    Args:
      config: a whole config.
      model: the network.
      source: the split, see `deeplab_jax.data.open_source`.
      mesh: the mesh that variables and batches are split over.
      num_worst: also return the details that a report needs, with this number of images; None skips them, which is
        faster.
    """

    def __init__(
        self, config: ConfigDict, model: nn.Module, source, mesh: jax.sharding.Mesh, *, num_worst: int | None = None
    ):
        self._config, self._source, self._mesh, self._num_worst = config, source, mesh, num_worst
        self._sizes = None
        self._step = jit_eval_step(config, model, mesh, with_confidence=num_worst is not None)
        self._draw = functools.partial(
            data.to_rgb, value_range=config.model.value_range, channels=config.data.display_channels
        )

    def __call__(self, variables: Any, *, before_batch: Callable[[], None] | None = None) -> dict[str, Any]:
        """Scores the whole split.

        Args:
          variables: the variables that `model.apply` takes.
          before_batch: called before each batch; it ends the evaluation by raising an exception.

        Returns:
          The scores of `deeplab_jax.evaluation.metrics.scores`, `loss`, `num_images`, and `gallery`: image, label and
          prediction (uint8 arrays, the image as RGB) of `GALLERY_SIZE` examples that are spread over the split. With
          `num_worst`, also the scores of `deeplab_jax.evaluation.details.Details.scores`, `details` and `confusion`,
          the matrix of the split.

        Raises:
          UserError: the split has no labeled pixels.
          RuntimeError: the number of images evaluated differs from the size of the split.
        """
        label_set = self._source.label_set
        totals, examples, previous = metrics.Totals(label_set.num_classes), [], None
        own = len(self._source) // jax.process_count()  # this process has at least this number of examples
        gallery, seen = sorted({i * own // GALLERY_SIZE for i in range(GALLERY_SIZE)}), 0
        details = self._new_details()
        batch_size, scales = config_lib.eval_batch_size(self._config), tuple(self._config.eval.scales)
        protocol = protocol_for(self._config)
        if isinstance(protocol, ViewProtocol) and self._sizes is None:
            self._sizes = label_sizes(self._source)
        batches = data.eval_batches(
            self._source,
            protocol,
            batch_size=batch_size // jax.process_count(),
            scales=scales,
            sizes=self._sizes,
            workers=self._config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            num_batches = count_batches(self._source, protocol, batch_size, scales, self._sizes)
            for batch in progress.track(batches, "evaluate", num_batches):
                if before_batch is not None:
                    before_batch()
                arrays = {name: value for name, value in batch.items() if name != "id"}
                result = self._step(variables, sharding.to_global(arrays, self._mesh))
                if previous is not None:  # read one step late, so the device is never idle
                    _read(totals, details, *previous)
                previous = batch, result
                count = int(np.sum(batch["valid"]))
                shown = [position - seen for position in gallery if seen <= position < seen + count]
                if shown:
                    found = report.gallery_examples(batch, result["prediction"], self._draw)
                    examples += [found[i] for i in shown]
                seen += count
        if previous is not None:
            _read(totals, details, *previous)
        if totals.num_images != len(self._source):
            raise RuntimeError(
                f"{totals.num_images} images were evaluated, but {self._source.split} has {len(self._source)}"
            )
        scores = totals.scores(label_set.class_names)
        if scores["num_pixels"] == 0:  # `check_labels` read only images until one had labels
            raise UserError(f"split {self._source.split} has no pixel to score: all have the ignore label")
        scores |= {"num_images": totals.num_images, "gallery": examples}
        if details is not None:
            details.gather()
            scores |= details.scores(label_set.class_names) | {"details": details, "confusion": totals.confusion}
        return scores

    def _new_details(self) -> Details | None:
        if self._num_worst is None:
            return None
        return Details(
            self._source.label_set.num_classes,
            ignored_pixels=self._config.eval.ignored_pixels,
            num_worst=self._num_worst,
            draw=self._draw,
        )


def _read(totals: metrics.Totals, details: Details | None, batch: dict[str, Any], result: dict[str, jax.Array]) -> None:
    """Adds the result of a step. Waits for the step."""
    totals.add(result)
    if details is not None:
        details.add_batch(batch, result)


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
      UserError: there is no such network or it has no checkpoint or no classes, a weight is NaN or infinite, the data
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
) -> report.Result:
    """Scores a checkpoint of a workdir without writing anything; see `evaluate` and `Evaluator`."""
    # Orbax takes a third of a second to import, which other networks do not need.
    from deeplab_jax.workdir.bucket_checkpoints import open_checkpoints

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
    is_newest = chosen is None or chosen == max(layout.checkpoint_steps(workdir))
    if jax.process_count() == 1:  # arrays of several processes cannot be read by one
        pretrained.check_finite(variables, workdir)
    scores = Evaluator(config, model, source, mesh, num_worst=num_worst)(variables)
    suffix = report.results_suffix(config, own_config, split=split) + ("" if is_newest else f"-checkpoint={step}")
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
) -> report.Result:
    """Scores a loaded network without writing anything; see `evaluate` and `Evaluator`.

    Messages and reports call the network `name_or_path`.
    """
    if network.label_set is None:
        raise UserError(f"{name_or_path} is a {network.model.backbone} backbone without classes; train from it first")
    config = pretrained.preset_config(network) if config is None else config
    source, model, mesh = _prepare(config, network.label_set, split, whose=str(name_or_path))
    variables, _ = pretrained.merge(_abstract_on(mesh, model, config), network.variables)
    scores = Evaluator(config, model, source, mesh, num_worst=num_worst)(variables)
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
