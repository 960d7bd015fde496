"""Shared by the tests of the PyTorch importers: state dicts from goldens, and comparisons block by block."""

import pathlib

import jax
import numpy as np
from flax import traverse_util

from deeplab_jax.models import abstract_variables, build_model
from tests.goldens import formula, torch_formula

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


class Golden:
    """The outputs of one script of tests/goldens."""

    def __init__(self, file: str):
        self.outputs = dict(np.load(GOLDENS / f"{file}.npz"))

    def shapes(self, network: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the network's arrays."""
        return torch_formula.unpack(self.outputs[f"{network}:arrays"])

    def state_dict(self, network: str) -> dict[str, np.ndarray]:
        """The network's arrays."""
        return torch_formula.state_dict(self.shapes(network), self.outputs[f"{network}:gain"])

    def samples(self, network: str) -> dict[str, np.ndarray]:
        """Samples of the outputs of the network and its modules, by our path."""
        samples = {key.partition(":")[2]: value for key, value in self.outputs.items() if key.startswith(f"{network}:")}
        return {path: value for path, value in samples.items() if path not in ("arrays", "gain")}


def compute(network, wanted, name: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Samples of the outputs of an imported network: `logits`, and those of the modules at the wanted paths.

    With the auxiliary head, as in training, but with running statistics and no dropout.
    """
    num_classes = network.label_set.num_classes if network.label_set else 1
    # Only training computes the auxiliary head.
    train = "auxiliary" in wanted
    model = build_model(network.model, num_classes)
    if train:
        dropout = dict.fromkeys(("aspp_dropout", "classifier_dropout", "auxiliary_dropout"), 0.0)
        dropout = {name: rate for name, rate in dropout.items() if hasattr(model, name)}
        model = model.clone(freeze_norm_statistics=True, **dropout)
    images = formula.images(name, (1, *size, 3))
    variables = network.variables if network.label_set else with_empty_head(network, model)

    @jax.jit
    def apply(variables, images):
        (logits, _), state = model.apply(
            variables, images, train=train, capture_intermediates=True, mutable=["intermediates"]
        )
        calls = traverse_util.flatten_dict(state["intermediates"], sep="/")
        outputs = {path.removesuffix("/__call__"): values[0] for path, values in calls.items()} | {"logits": logits}
        # A residual unit returns its branch after its output.
        return {path: outputs[path][0] if isinstance(outputs[path], tuple) else outputs[path] for path in wanted}

    return {
        path: torch_formula.sample(value, 800 if path == "logits" else 64)
        for path, value in apply(variables, images).items()
    }


def with_empty_head(network, model):
    """The variables of an imported backbone, in a network whose head is zero."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_variables(model))
    return {group: zeros[group] | network.variables[group] for group in ("params", "batch_stats")}


def assert_equal(computed, wanted, tolerance: float = 1e-4):
    """Compares block by block. The tolerance is for float32 sums in another order, relative to a block's maximum."""
    assert set(computed) == set(wanted)
    for path, values in wanted.items():
        scale = max(1.0, np.abs(values).max())
        assert np.abs(values).max() > 1e-2, f"{path} is almost zero; the comparison is meaningless"
        np.testing.assert_allclose(computed[path] / scale, values / scale, rtol=0, atol=tolerance, err_msg=path)
