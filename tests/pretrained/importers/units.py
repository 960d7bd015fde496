"""Outputs of an imported network and of the units of its backbone."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import linen as nn

from deeplab_jax.models import build_model
from deeplab_jax.pretrained import PretrainedNetwork


def make_outputs(
    network: PretrainedNetwork, names: Sequence[str], *classes: type[nn.Module]
) -> Callable[[np.ndarray], dict[str, jax.Array]]:
    """Returns a compiled function of images that returns the logits as `result`, endpoints, and units from `unit0`.

    Args:
      network: the network.
      names: the names of the units in order.
      *classes: the classes of the units.
    """
    model = build_model(network.model, network.label_set.num_classes)

    @jax.jit
    def apply(variables, images):
        return model.apply(
            variables,
            images,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, classes),
        )

    def outputs(images):
        (result, endpoints), state = apply(network.variables, images)
        calls = [state["intermediates"]["backbone"][name]["__call__"][0] for name in names]
        # Units return a branch, or the features for the decoder, after their output.
        units = {f"unit{i}": call[0] if isinstance(call, tuple) else call for i, call in enumerate(calls)}
        return {"result": result} | endpoints | units

    return outputs
