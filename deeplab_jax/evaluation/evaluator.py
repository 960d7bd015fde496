"""Exact, counted evaluation: every image of a split once, integer counts, ground truth at its own size."""

import contextlib
import math
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from deeplab_jax import config as config_lib
from deeplab_jax import data, losses, pretrained
from deeplab_jax.data import open_split
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.report import save_scores
from deeplab_jax.evaluation.step import make_eval_step
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.pretrained import PretrainedNetwork
from deeplab_jax.workdir import checkpoint, layout


#: Images of an evaluation that its gallery shows.
GALLERY_IMAGES = 8


class Evaluator:
    """Scores a network on a split; compiles once, so that a training run can call it again and again."""

    def __init__(self, config: ConfigDict, model: DeepLabV3Plus, source, mesh: jax.sharding.Mesh):
        self._config, self._source, self._mesh = config, source, mesh
        self._step = jit_eval_step(config, model, mesh)

    def __call__(self, variables: Any, *, console: Console | None = None, gallery: int = 0) -> dict[str, Any]:
        """Scores the whole split.

        Args:
          variables: what `model.apply` takes.
          console: shows progress on it.
          gallery: how many of the first images to return with truth and prediction.

        Returns:
          What `metrics.json` holds, and `gallery`: a list of (image, truth, prediction) uint8 arrays.

        Raises:
          RuntimeError: the number of images evaluated is not the size of the split.
        """
        totals, images, previous = metrics.Totals(self._source.label_set.num_classes), [], None
        batch_size = config_lib.eval_batch_size(self._config)
        batches = data.eval_batches(
            self._source,
            self._config.data,
            self._config.eval,
            batch_size=batch_size // jax.process_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            pad_color=data.pad_color(self._config.model.input_mean),
        )
        bar = Progress(console=console, transient=True, disable=console is None or not console.is_terminal)
        with contextlib.closing(batches), bar as progress:
            task = progress.add_task("evaluate", total=math.ceil(len(self._source) / batch_size))
            for batch in batches:
                arrays = {name: batch[name] for name in ("image", "label", "size", "valid")}
                report = self._step(variables, sharding.to_global(arrays, self._mesh))
                if previous is not None:  # one step behind: the device is never left without work
                    totals.add(previous)
                previous = {name: report[name] for name in ("loss_sum", "loss_count", "confusion", "num_images")}
                if len(images) < gallery:
                    images += _images(batch, report["prediction"])[: gallery - len(images)]
                progress.advance(task)
        if previous is not None:
            totals.add(previous)
        if totals.num_images != len(self._source):
            raise RuntimeError(
                f"{totals.num_images} images were evaluated, but {self._source.split} has {len(self._source)}"
            )
        scores = totals.scores(self._source.label_set.class_names)
        return scores | {"num_images": totals.num_images, "gallery": images}


def jit_eval_step(config: ConfigDict, model: DeepLabV3Plus, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """The compiled `step(variables, batch)` of `deeplab_jax.evaluation.step.make_eval_step` that a config evaluates with."""
    step = make_eval_step(
        model,
        losses.make_loss(config.loss, num_classes=model.num_classes),
        protocol=config.eval.protocol,
        scales=tuple(config.eval.scales),
        flip=config.eval.flip,
        void=config.eval.ignored_pixels,
        mesh=mesh,
    )
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    outputs = dict.fromkeys(("loss_sum", "loss_count", "confusion", "num_images"), replicated)
    return jax.jit(step, out_shardings=outputs | {"prediction": split})


def evaluate_workdir(
    workdir: pathlib.Path, *, config: ConfigDict | None = None, split: str | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Scores the newest checkpoint of a workdir and writes `metrics.json` and `gallery.png` next to it.

    Args:
      workdir: of a training run.
      config: the run's config with other `data` and `eval` fields; default: as it was trained.
      split: of the data set; default: `data.eval_split`.
      console: shows progress on it.

    Raises:
      UserError: no checkpoint, data that are not there, or classes that differ from the network's.
    """
    config = layout.read_config(workdir) if config is None else config
    config_lib.validate(config)
    mesh_lib.validate_mesh(config, devices=jax.device_count(), processes=jax.process_count())
    label_set = layout.read_labels(workdir)
    source = _open_split_with(label_set, config, split, f"the network in {workdir}")
    mesh = mesh_lib.make_mesh(config.mesh)
    model = build_for_mesh(config, label_set.num_classes, mesh)
    with checkpoint.Checkpoints(workdir, read_only=True, console=console) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise UserError(f"{workdir} has no checkpoint yet; let `deeplab-jax train` write one")
        variables = checkpoints.restore_variables(_abstract_on(mesh, model, config))
    scores = Evaluator(config, model, source, mesh)(variables, console=console, gallery=GALLERY_IMAGES)
    return save_scores(workdir, scores, source.label_set, config, step)


def evaluate_pretrained(
    network: PretrainedNetwork, *, config: ConfigDict, split: str | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Scores a pretrained network; returns what `metrics.json` of a workdir holds, without a step, and writes nothing.

    Args:
      network: with classes.
      config: of `deeplab_jax.pretrained.preset_config`, with the data set named.
      split: of the data set; default: `data.eval_split`.
      console: shows progress on it.

    Raises:
      UserError: a backbone alone, data that are not there, or classes that differ from the network's.
    """
    if network.label_set is None:
        raise UserError(f"a {network.model.backbone} backbone alone has no classes to score; train from it first")
    config_lib.validate(config, training=False)
    mesh_lib.validate_mesh(config, devices=jax.device_count(), processes=jax.process_count())
    source = _open_split_with(network.label_set, config, split, "the network")
    mesh = mesh_lib.make_mesh(config.mesh)
    model = build_for_mesh(config, network.label_set.num_classes, mesh)
    variables, _ = pretrained.merge(_abstract_on(mesh, model, config), network.variables)
    scores = Evaluator(config, model, source, mesh)(variables, console=console, gallery=GALLERY_IMAGES)
    return {name: value for name, value in scores.items() if name != "gallery"} | {"config": config_lib.to_dict(config)}


def _abstract_on(mesh: jax.sharding.Mesh, model: DeepLabV3Plus, config: ConfigDict) -> Any:
    return sharding.with_shardings(abstract_variables(model), mesh, fsdp_min_size=config.mesh.fsdp_min_size)


def _open_split_with(label_set: LabelSet, config: ConfigDict, split: str | None, whose: str):
    source = open_split(config, split or config.data.eval_split)
    if source.label_set.class_names != label_set.class_names:
        raise UserError(
            f"{config.data.name} has the classes {', '.join(source.label_set.class_names)}, but {whose} was trained on "
            f"{', '.join(label_set.class_names)}"
        )
    return source


def _images(batch: dict[str, Any], prediction: jax.Array) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Image, truth and prediction of a batch's valid examples, each at the size it is scored at."""
    local = sharding.to_local(prediction)
    images = []
    for i in np.flatnonzero(batch["valid"]):
        height, width = batch["size"][i].tolist()
        label, image = batch["label"][i][:height, :width], batch["image"][i]
        if batch["image"].shape[1:3] != batch["label"].shape[1:3]:  # squeezed for the network
            image = data.resize_image(image, (height, width))
        images.append((image[:height, :width], label, local[i][:height, :width]))
    return images
