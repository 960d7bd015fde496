"""Pretrained networks in memory. Every importer returns a `PretrainedNetwork`."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict, FrozenConfigDict

from deeplab_jax.config import base_config, check_fields, get_field
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL, VOC, VOC_CLASS_NAMES, LabelSet
from deeplab_jax.models import BACKBONES, abstract_variables, build_model
from deeplab_jax.pretrained.provenance import UNKNOWN, Provenance
from deeplab_jax.program_cache import load_or_compute

#: Config fields that change what a network sees of an image, or its scores, apart from `model`, the protocol and the
#: size. Prediction has arguments of its own for scales and flips.
FEEDING_FIELDS = (
    "eval.scale_to", "eval.size_multiple", "eval.window_stride", "eval.window_average", "data.antialias",
    "eval.scales", "eval.flip", "eval.ignored_pixels",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PretrainedNetwork:
    """A network and its variables.

    Attributes:
      model: the `config.model` that builds it.
      variables: `params` and `batch_stats` as float32 arrays; only those of the backbone if `label_set` is None.
      label_set: its classes; None for a backbone.
      protocol: the `config.eval.protocol` its authors use.
      image_size: (height, width) of its input under this protocol; None if any size works.
      report: lines that say what was imported and what was skipped.
      provenance: author, training data, license, scores and so on, if they are known.
      feeding: values of `FEEDING_FIELDS` that are not the defaults, by path.
      step: the training step of a workdir's checkpoint; None for other networks.
    """

    model: ConfigDict
    variables: Mapping[str, Any]
    label_set: LabelSet | None
    protocol: str = "whole"
    image_size: tuple[int, int] | None = None
    report: Sequence[str] = ()
    provenance: Provenance = UNKNOWN
    feeding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None

    def __repr__(self) -> str:
        classes = f"{self.label_set.num_classes} classes" if self.label_set else "backbone only"
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables.get("params", {})))
        size = "any size" if self.image_size is None else "x".join(map(str, self.image_size))
        return (
            f"PretrainedNetwork({self.model.backbone}, {classes}, {count / 1e6:.1f}M parameters, "
            f"{self.protocol} {size})"
        )


def read_feeding(config: ConfigDict) -> dict[str, Any]:
    """Returns the `feeding` of a network that a whole config feeds."""
    default, values = base_config(), {}
    for path in FEEDING_FIELDS:
        if (value := get_field(config, path)) != get_field(default, path):
            values[path] = value
    return values


def set_feeding(config: ConfigDict, feeding: Mapping[str, Any]) -> None:
    """Sets the fields of a `feeding` in a whole config.

    Raises:
      UserError: a field or value is not legal. Saved networks may come from strangers.
    """
    for path, value in feeding.items():
        if path not in FEEDING_FIELDS:
            raise UserError(f"{path!r} is not one of {', '.join(FEEDING_FIELDS)}")
        group, field = path.split(".")
        try:
            config[group][field] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{path}={value!r}: {first_line(error)}") from None
    for group in ("data", "eval"):
        check_fields(group, config[group])


def check_finite(variables: Any, source: str | pathlib.Path) -> None:
    """Checks that weights are numbers. One NaN makes every prediction of a network meaningless, without a word.

    Args:
      variables: `params` and `batch_stats`.
      source: the file or folder they come from, for the message.

    Raises:
      UserError: one is NaN or infinite; the message names the first.
    """
    for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items():
        values = np.asarray(leaf)
        with np.errstate(all="ignore"):
            # The sum is fast and needs no memory. It can also overflow, so that it only acquits.
            if not np.isfinite(values.sum()) and not np.isfinite(values).all():
                raise UserError(
                    f"{source}: weight {path} contains NaN or infinity; the file is damaged, or its training diverged: "
                    "use an earlier checkpoint or another file"
                )


def average(networks: Sequence[PretrainedNetwork]) -> PretrainedNetwork:
    """Averages the variables of several networks: a model soup (arXiv 2203.05482).

    Averaging helps for checkpoints of one run, or for runs that started from the same weights.

    Args:
      networks: networks that differ only in their variables.

    Returns:
      The first network with the averaged variables.

    Raises:
      UserError: a network has another model or other classes than the first.
    """
    first, *others = networks
    for number, network in enumerate(others, 2):
        if _architecture(network.model) != _architecture(first.model) or network.label_set != first.label_set:
            raise UserError(f"network {number} has another model or other classes than the first; cannot average them")
    variables = jax.tree.map(
        lambda *arrays: np.mean(arrays, axis=0, dtype=np.float64).astype(np.float32),
        *(network.variables for network in networks),
    )
    report = (f"averaged the variables of {len(networks)} networks",) if others else ()
    return dataclasses.replace(
        first,
        variables=variables,
        report=tuple(dict.fromkeys((*first.report, *report))),
        provenance=_shared_provenance([network.provenance for network in networks]),
    )


def _shared_provenance(provenances: Sequence[Provenance]) -> Provenance:
    """Returns the facts that all networks share. The mean of several networks has no score yet."""
    first, *others = provenances
    changed = {
        field.name: field.default
        for field in dataclasses.fields(Provenance)
        if any(getattr(other, field.name) != getattr(first, field.name) for other in others)
    }
    return dataclasses.replace(first, **(changed | {"scores": ()} if others else {}))


def _architecture(model: ConfigDict) -> dict[str, Any]:
    """Returns the fields that determine the output of a trained network, without those for training."""
    return model.to_dict() | {"freeze_norm_statistics": None, "zero_unreached_taps": None}


def model_config(**fields: Any) -> ConfigDict:
    """Returns the default `config.model` with these fields changed."""
    model = base_config().model
    model.update(fields)
    return model


def variable_shapes(model: ConfigDict, num_classes: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every variable by path, such as `params/backbone/stem_conv/kernel`. Computes nothing.

    Args:
      model: `config.model`.
      num_classes: number of classes; None for the variables of the backbone alone.

    Raises:
      UserError: no network has these fields.
    """
    try:
        # A backbone can be registered again under its name.
        shapes = _trace_shapes(FrozenConfigDict(model), num_classes or 1, id(BACKBONES.get(model.backbone)))
    except UserError:
        raise
    except Exception as error:  # field values that no network has can fail anywhere
        raise UserError(f"no network has these fields: {type(error).__name__}: {first_line(error)}") from None
    return {
        path: shape for path, shape in shapes.items() if num_classes is not None or path.split("/")[1] == "backbone"
    }


@functools.lru_cache(maxsize=16)  # tracing takes seconds
def _trace_shapes(model: FrozenConfigDict, num_classes: int, backbone_id: int) -> dict[str, tuple[int, ...]]:
    def trace() -> dict[str, tuple[int, ...]]:
        flat = traverse_util.flatten_dict(abstract_variables(network), sep="/")
        return {path: leaf.shape for path, leaf in flat.items()}

    network = build_model(model, num_classes)  # the errors of a wrong config come from here
    return load_or_compute(trace, ["variable shapes", network])


def voc_or_numbered_labels(num_classes: int) -> LabelSet:
    """Returns Pascal VOC's classes if there are 21, otherwise `class 0`, `class 1` and so on.

    Raises:
      UserError: labels of one byte cannot count them.
    """
    if not 0 < num_classes <= IGNORE_LABEL:
        raise UserError(f"the network has {num_classes} classes; 1 to {IGNORE_LABEL} are supported")
    if num_classes == len(VOC_CLASS_NAMES):
        return VOC
    return LabelSet.from_names(tuple(f"class {i}" for i in range(num_classes)))


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's message."""
    return str(error).partition("\n")[0]
