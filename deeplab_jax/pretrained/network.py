"""A pretrained network in memory: what every importer returns and every preset loads."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from deeplab_jax.config import base_config
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC, VOC_CLASS_NAMES, LabelSet
from deeplab_jax.models import abstract_variables, build_model


@dataclasses.dataclass(frozen=True)
class PretrainedNetwork:
    """A network and its parameters.

    Attributes:
      model: what `config.model` has to be.
      variables: `params` and `batch_stats` as float32 arrays; only those of `backbone` if `labels` is None.
      labels: the classes, None for a backbone alone.
      protocol: `config.eval.protocol` that feeds the network images as its authors did.
      image_size: (height, width) of what the network sees then: `data.image_size` of `squeeze`, `eval.image_size` of
        `whole`; None leaves it open.
      report: lines that say what was taken and what was left out.
    """

    model: ConfigDict
    variables: Mapping[str, Any]
    label_set: LabelSet | None
    protocol: str = "whole"
    image_size: tuple[int, int] | None = None
    report: Sequence[str] = ()


def average(networks: Sequence[PretrainedNetwork]) -> PretrainedNetwork:
    """The first network, with the mean of the variables of all: a model soup (arXiv 2203.05482).

    It pays for networks that one training led to, or several from one start.

    Raises:
      UserError: another network than the first, or of other classes.
    """
    first, *others = networks
    for number, network in enumerate(others, 2):
        if _computed(network.model) != _computed(first.model) or network.label_set != first.label_set:
            raise UserError(
                f"network {number} is another one than the first, or of other classes: they have no average"
            )
    variables = jax.tree.map(
        lambda *arrays: np.mean(arrays, axis=0, dtype=np.float64).astype(np.float32),
        *(network.variables for network in networks),
    )
    report = (f"the mean of {len(networks)} networks' variables",) if others else ()
    return dataclasses.replace(first, variables=variables, report=tuple(dict.fromkeys((*first.report, *report))))


def _computed(model):
    """The fields of `config.model` that say what a trained network computes: not how it was trained."""
    return model.to_dict() | {"freeze_norm_statistics": None, "zero_unreached_taps": None}


def model_config(**fields: Any) -> ConfigDict:
    """`config.model` with these fields set."""
    model = base_config().model
    model.update(fields)
    return model


def variable_shapes(model: ConfigDict, num_classes: int | None) -> dict[str, tuple[int, ...]]:
    """The shape of every variable by path, such as `params/backbone/stem_conv/kernel`; computes nothing.

    Args:
      model: `config.model`.
      num_classes: None for the variables of the backbone alone.
    """
    flat = traverse_util.flatten_dict(abstract_variables(build_model(model, num_classes or 1)), sep="/")
    return {
        path: leaf.shape for path, leaf in flat.items() if num_classes is not None or path.split("/")[1] == "backbone"
    }


def voc_or_numbered_labels(num_classes: int) -> LabelSet:
    """Pascal VOC's classes if there are 21, else `class 0`, `class 1`..."""
    if num_classes == len(VOC_CLASS_NAMES):
        return VOC
    return LabelSet.from_names(tuple(f"class {i}" for i in range(num_classes)))
