"""Folding of BatchNorm into kernels, for networks that are only used for inference."""

import collections
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from deeplab_jax import ops
from deeplab_jax.models.layers import BatchNorm, LinearLayer
from deeplab_jax.models.network import SegmentationNetwork

Path = tuple[str, ...]


class _Norm(NamedTuple):
    """One BatchNorm: the layer before it that takes its factor, or None, and its epsilon."""

    linear: Path | None
    epsilon: float


def fold_batch_norm(model: SegmentationNetwork, variables: Any) -> dict[str, Any]:
    """Returns variables with which `model.apply(..., train=False)` computes the same function in fewer operations.

    With running statistics, BatchNorm multiplies by one constant per channel and adds another. If it follows a layer
    that is linear in its parameters, such as a convolution, and nothing else reads that layer's output, the factor is
    multiplied into the kernel, and only the addition remains. Elsewhere, as in the pre-activations of ResNet v2, a
    multiplication and an addition remain. The endpoints do not change.

    The layers are found in a trace of the network, so this works for backbones of your own. Variables that are folded
    already are returned as they are, and so are those of parts that inference does not compute, such as the auxiliary
    head. Folded variables cannot be trained, saved or folded back.

    Args:
      model: the network.
      variables: its `params` and `batch_stats`. They are copied to the host.

    Returns:
      `params` and `batch_stats` as NumPy arrays. XLA:CPU takes ten seconds to compile the same for a device.
    """
    variables = jax.device_get(variables)
    params = flax.traverse_util.flatten_dict(variables["params"])
    statistics = flax.traverse_util.flatten_dict(variables.get("batch_stats", {}))
    for path, norm in _find_norms(model, variables).items():
        if (*path, "shift") in params:
            continue
        mean, variance = statistics.pop((*path, "mean")), statistics.pop((*path, "var"))
        scale, bias = params.pop((*path, "scale")), params.pop((*path, "bias"))
        with np.errstate(invalid="ignore"):  # a negative variance gives NaN, as in `model.apply`
            factor = scale / np.sqrt(np.asarray(variance, np.float64) + norm.epsilon)
        params[*path, "shift"] = (bias - mean * factor).astype(bias.dtype)
        if norm.linear is None:
            params[*path, "factor"] = factor.astype(scale.dtype)
        else:
            for name in [name for name in params if name[:-1] == norm.linear]:
                array = params[name]
                params[name] = (array * factor.reshape(*(1,) * (array.ndim - 1), -1)).astype(array.dtype)
    folded = {"params": params, "batch_stats": statistics}
    return {name: flax.traverse_util.unflatten_dict(folded[name]) for name in variables}


def _find_norms(model: SegmentationNetwork, variables: Any) -> dict[Path, _Norm]:
    """Returns each BatchNorm that inference computes, by its path."""
    outputs: dict[str, Path] = {}  # of linear layers, by the names that mark them in the program
    inputs: dict[str, tuple[Path, float]] = {}  # of BatchNorm

    def mark(call, args, kwargs, context):
        module, name = context.module, f"mark {len(outputs) + len(inputs)}"
        if context.method_name == "__call__" and isinstance(module, LinearLayer):
            outputs[name] = module.path
            return checkpoint_name(call(*args, **kwargs), name)
        if context.method_name == "__call__" and isinstance(module, BatchNorm) and module.use_running_average:
            inputs[name] = module.path, module.epsilon
            return call(checkpoint_name(args[0], name))
        return call(*args, **kwargs)

    # Variables depend neither on the image size nor on the operations; these take the least time to trace.
    images = jax.ShapeDtypeStruct((1, 64, 64, model.in_channels), np.uint8)
    traced = model.clone(ops=ops.XLA)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    with nn.intercept_methods(mark):
        program = jax.make_jaxpr(lambda v, x: traced.apply(v, x, train=False))(shapes, images).jaxpr

    readers = collections.Counter(var for eqn in program.eqns for var in eqn.invars if isinstance(var, core.Var))
    readers.update(var for var in program.outvars if isinstance(var, core.Var))
    calls = collections.Counter([*outputs.values(), *(path for path, _ in inputs.values())])
    norms = {path: _Norm(None, epsilon) for path, epsilon in inputs.values()}
    produced: dict[core.Var, Path] = {}
    for eqn in program.eqns:
        name = eqn.params.get("name")
        if name in outputs:
            produced[eqn.outvars[0]] = outputs[name]
        elif name in inputs:
            (path, epsilon), var = inputs[name], eqn.invars[0]
            linear = produced.get(var)
            if readers[var] == 1 and calls[path] == 1 and calls[linear] == 1:
                norms[path] = _Norm(linear, epsilon)
    return norms
