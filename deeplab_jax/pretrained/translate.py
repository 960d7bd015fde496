"""Strict conversion of foreign arrays to variables: every array on either side is accounted for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from flax import traverse_util

from deeplab_jax.errors import UserError

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Convention:
    """Array names and kernel axes of a framework.

    Attributes:
      separator: text between the name of a layer and the name of an array.
      kernel: name of a convolution's kernel.
      depthwise_kernel: name of a depthwise convolution's kernel.
      bias: name of a convolution's bias.
      norm: names of BatchNorm's scale, bias, mean and var.
      kernel_axes: positions of height, width, input channels and features in the foreign kernel.
      depthwise_axes: positions of height, width, 1 and channels in the foreign depthwise kernel.
      dense_axes: positions of input channels and features in the foreign kernel of a linear layer, which is a 1x1
        convolution here.
    """

    separator: str
    kernel: str
    depthwise_kernel: str
    bias: str
    norm: tuple[str, str, str, str]
    kernel_axes: tuple[int, int, int, int]
    depthwise_axes: tuple[int, int, int, int]
    dense_axes: tuple[int, int] = (0, 1)

    def foreign_leaf(self, leaf: str, *, is_norm: bool, is_depthwise: bool) -> str:
        """Returns the foreign name of an array that Flax calls kernel, bias, scale, mean or var."""
        if is_norm:
            return self.norm[("scale", "bias", "mean", "var").index(leaf)]
        return self.bias if leaf == "bias" else self.depthwise_kernel if is_depthwise else self.kernel


TORCH = Convention(
    separator=".",
    kernel="weight",
    depthwise_kernel="weight",
    bias="bias",
    norm=("weight", "bias", "running_mean", "running_var"),
    kernel_axes=(2, 3, 1, 0),
    depthwise_axes=(2, 3, 1, 0),
    dense_axes=(1, 0),
)
KERAS = Convention(
    separator="/",
    kernel="kernel",
    depthwise_kernel="kernel",
    bias="bias",
    norm=("gamma", "beta", "moving_mean", "moving_variance"),
    kernel_axes=(0, 1, 2, 3),
    depthwise_axes=(0, 1, 3, 2),
    dense_axes=(0, 1),
)
SLIM = Convention(
    separator="/",
    kernel="weights",
    depthwise_kernel="depthwise_weights",
    bias="biases",
    norm=("gamma", "beta", "moving_mean", "moving_variance"),
    kernel_axes=(0, 1, 2, 3),
    depthwise_axes=(0, 1, 3, 2),
    dense_axes=(0, 1),
)


def translate(
    foreign: Mapping[str, np.ndarray],
    modules: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    convention: Convention,
    *,
    skipped: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict], list[str]]:
    """Fills a network's variables with the arrays of a foreign file.

    Args:
      foreign: arrays of the file by name.
      modules: the foreign layer name of each of our layer paths, such as `backbone/stem_conv`.
      shapes: shapes of the variables to fill, by path; see `network.variable_shapes`.
      convention: array names and axes of the foreign framework.
      skipped: regular expressions of foreign names to skip (full match), each with the reason.

    Returns:
      `params` and `batch_stats` as float32 arrays, and the lines of a report.

    Raises:
      UserError: an array is missing, unused, or has another shape.
    """
    norms = {path.rpartition("/")[0].partition("/")[2] for path in shapes if path.endswith("/scale")}
    values, used, reordered, wrong = {}, set(), 0, []
    for path, shape in shapes.items():
        module, _, leaf = path.partition("/")[2].rpartition("/")
        if module not in modules:
            wrong.append(f"{path} has no foreign name")
            continue
        is_depthwise = module.endswith("depthwise_conv")
        foreign_leaf = convention.foreign_leaf(leaf, is_norm=module in norms, is_depthwise=is_depthwise)
        name = f"{modules[module]}{convention.separator}{foreign_leaf}"
        if name not in foreign:
            wrong.append(f"{name} is missing in the file (for {path})")
            continue
        used.add(name)
        value = np.asarray(foreign[name], np.float32)
        if leaf == "kernel" and value.ndim == 4:
            axes = convention.depthwise_axes if is_depthwise else convention.kernel_axes
            reordered += axes != (0, 1, 2, 3)
            value = value.transpose(axes)
        elif leaf == "kernel" and value.ndim == 2:
            reordered += convention.dense_axes != (0, 1)
            value = value.transpose(convention.dense_axes)[None, None]
        if value.shape != tuple(shape):
            wrong.append(f"{name} has shape {np.shape(foreign[name])}, which does not fit {path} of shape {shape}")
            continue
        values[path] = np.ascontiguousarray(value)
    reasons, by_reason = dict(skipped or {}), {}
    for name in foreign:
        if name not in used:
            reason = next((reason for pattern, reason in reasons.items() if re.fullmatch(pattern, name)), None)
            if reason is None:
                wrong.append(f"{name} is unused")
            else:
                by_reason.setdefault(reason, []).append(name)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"the file does not fit the network: {'; '.join(wrong[:_SHOWN])}{more}")
    report = [f"{len(values)} arrays imported, {reordered} with reordered axes; 0 missing, 0 unused"]
    report += [f"{len(names)} skipped ({reason}): {_abridge(names)}" for reason, names in by_reason.items()]
    return traverse_util.unflatten_dict(values, sep="/"), report


def with_background(foreign: Mapping[str, np.ndarray], classifier: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a PyTorch network of one class with a class before it whose logit is 0.

    Args:
      foreign: arrays of the network by name.
      classifier: name of its last layer.
    """
    names = (f"{classifier}.weight", f"{classifier}.bias")
    return dict(foreign) | {name: np.concatenate([0 * foreign[name], foreign[name]]) for name in names}


def _abridge(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[: _SHOWN - 1])} ... {names[-1]}"
