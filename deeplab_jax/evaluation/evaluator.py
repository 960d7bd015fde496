"""Exact, counted evaluation: every image of a split once, integer counts, labels at their own size."""

import contextlib
import logging
import math
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained, progress
from deeplab_jax.data.eval_pipeline import check_labels
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics, report
from deeplab_jax.evaluation.step import jit_eval_step
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.workdir import layout

logger = logging.getLogger(__name__)

#: Number of examples in the gallery of an evaluation.
GALLERY_SIZE = 8

_SUMS = ("loss_sum", "loss_count", "confusion", "num_images")


class Evaluator:
    """Scores a network on a split. It compiles once, so a training run can call it repeatedly.

    Args:
      config: a whole config.
      model: the network.
      source: the split, see `deeplab_jax.data.open_source`.
      mesh: the mesh that variables and batches are split over.
    """

    def __init__(self, config: ConfigDict, model: nn.Module, source, mesh: jax.sharding.Mesh):
        self._config, self._source, self._mesh = config, source, mesh
        self._step = jit_eval_step(config, model, mesh)

    def __call__(self, variables: Any, *, before_batch: Callable[[], None] | None = None) -> dict[str, Any]:
        """Scores the whole split.

        Args:
          variables: the variables that `model.apply` takes.
          before_batch: called before each batch; it ends the evaluation by raising an exception.

        Returns:
          The scores of `deeplab_jax.evaluation.metrics.scores`, `loss`, `num_images`, and `gallery`: image, label and
          prediction (uint8 arrays) of the first `GALLERY_SIZE` examples.

        Raises:
          UserError: the split has no labeled pixels.
          RuntimeError: the number of images evaluated differs from the size of the split.
        """
        totals, examples, previous = metrics.Totals(self._source.label_set.num_classes), [], None
        batch_size = config_lib.eval_batch_size(self._config)
        batches = data.eval_batches(
            self._source,
            protocol_for(self._config),
            batch_size=batch_size // jax.process_count(),
            workers=self._config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            for batch in progress.track(batches, "evaluate", math.ceil(len(self._source) / batch_size)):
                if before_batch is not None:
                    before_batch()
                arrays = {name: batch[name] for name in ("image", "label", "size", "valid")}
                result = self._step(variables, sharding.to_global(arrays, self._mesh))
                if previous is not None:  # read one step late, so the device is never idle
                    totals.add(previous)
                previous = {name: result[name] for name in _SUMS}
                if len(examples) < GALLERY_SIZE:
                    examples += report.gallery_examples(batch, result["prediction"])[: GALLERY_SIZE - len(examples)]
        if previous is not None:
            totals.add(previous)
        if totals.num_images != len(self._source):
            raise RuntimeError(
                f"{totals.num_images} images were evaluated, but {self._source.split} has {len(self._source)}"
            )
        scores = totals.scores(self._source.label_set.class_names)
        if scores["num_pixels"] == 0:  # `check_labels` read only images until one had labels
            raise UserError(f"split {self._source.split} has no pixel to score: all have the ignore label")
        return scores | {"num_images": totals.num_images, "gallery": examples}


def evaluate(
    name_or_path: str | pathlib.Path, *, config: ConfigDict | None = None, split: str | None = None
) -> dict[str, Any]:
    """Scores a network on a split of a data set.

    Args:
      name_or_path: the workdir of a training run, whose newest checkpoint is scored; the name of a preset; a folder
        that `deeplab-jax convert` wrote; or `hf://owner/name`, a network on the Hugging Face Hub.
      config: names the data set and how images are fed. Default for a workdir: the run's own config. For a preset or a
        folder, start from `deeplab_jax.pretrained.preset_config` and set `data.name`.
      split: split of the data set; default: `data.eval_split`.

    Returns:
      The scores. For a workdir they are also written to its `metrics.json`, with a `gallery.png` next to it. Scores of
      another split or config get files of their own, see `deeplab_jax.evaluation.report.results_suffix`. If the workdir
      cannot be written, a warning says so.

    Raises:
      UserError: there is no such network or it has no checkpoint or no classes, a weight is NaN or infinite, the data
        set is not prepared, or its classes differ from the network's.
    """
    if not pretrained.is_workdir(name_or_path):
        return evaluate_network(pretrained.load(name_or_path), name_or_path, config=config, split=split)
    result = evaluate_workdir(pathlib.Path(name_or_path), config=config, split=split)
    try:
        result.save()
    except UserError as error:  # the scores took longer than anything else
        logger.warning("the scores are not saved: %s", error)
    return result.values


def evaluate_workdir(
    workdir: pathlib.Path, *, config: ConfigDict | None = None, split: str | None = None
) -> report.Result:
    """Scores the newest checkpoint of a workdir without writing anything; see `evaluate`."""
    # Orbax takes a third of a second to import, which other networks do not need.
    from deeplab_jax.workdir.checkpoint import Checkpoints

    own_config = layout.read_config(workdir)
    config = own_config if config is None else config
    label_set = layout.read_labels(workdir)
    source, model, mesh = _prepare(config, label_set, split, whose=f"the network in {workdir}")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if checkpoints.latest_step() is None:
            raise UserError(f"{workdir} has no checkpoint yet; let `deeplab-jax train` write one")
        variables = checkpoints.restore_variables(_abstract_on(mesh, model, config))
        step = checkpoints.latest_step()
    if jax.process_count() == 1:  # arrays of several processes cannot be read by one
        pretrained.check_finite(variables, workdir)
    scores = Evaluator(config, model, source, mesh)(variables)
    suffix = report.results_suffix(config, own_config, split=split)
    return report.Result(workdir, scores, source.label_set, config, step, suffix)


def evaluate_network(
    network: PretrainedNetwork,
    name_or_path: str | pathlib.Path,
    *,
    config: ConfigDict | None = None,
    split: str | None = None,
) -> dict[str, Any]:
    """Scores a loaded network and writes nothing; see `evaluate`. Messages call the network `name_or_path`."""
    if network.label_set is None:
        raise UserError(f"{name_or_path} is a {network.model.backbone} backbone without classes; train from it first")
    config = pretrained.preset_config(network) if config is None else config
    source, model, mesh = _prepare(config, network.label_set, split, whose=str(name_or_path))
    variables, _ = pretrained.merge(_abstract_on(mesh, model, config), network.variables)
    scores = Evaluator(config, model, source, mesh)(variables)
    return report.without_gallery(scores) | {"config": config_lib.to_dict(config)}


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
    mesh = mesh_lib.make_mesh(config.mesh)
    return source, build_for_mesh(config, label_set.num_classes, mesh, input_sizes=protocol.input_sizes), mesh


def _abstract_on(mesh: jax.sharding.Mesh, model: nn.Module, config: ConfigDict) -> Any:
    return sharding.with_shardings(abstract_variables(model), mesh, fsdp_min_size=config.mesh.fsdp_min_size)
