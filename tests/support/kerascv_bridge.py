"""KerasCV's training state as ours, and ours seen step by step."""

import numpy as np
import optax
from flax import traverse_util

from deeplab_jax import losses
from deeplab_jax.config import load_config, parse_duration
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.pretrained.importers import kerascv
from deeplab_jax.pretrained.readers import keras_h5
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step

CLASSES = 21


class Bridge:
    """Translates between KerasCV's variables by path and our trees.

    Attributes:
      ours: our path of each variable by KerasCV's, such as `params/backbone/stem_conv/kernel` of `conv1_conv/kernel`.
    """

    def __init__(self, layout):
        """Takes the rows of `make_kerascv.stored_layout`; the importer says which variable is which."""
        layers: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        for i, (group, name, _, path, shape) in enumerate(layout):
            layers.setdefault((group, name), {})[path.rpartition("/")[2]] = np.broadcast_to(np.float32(i), shape)
        layers = [keras_h5.Layer(group, name, arrays) for (group, name), arrays in layers.items()]
        network = kerascv.convert(layers, {}, source="the layout")
        flat = traverse_util.flatten_dict(network.variables, sep="/")
        self.ours = {layout[int(value.flat[0])][3]: path for path, value in flat.items()}
        self.shapes = {path: tuple(shape) for *_, path, shape in layout}

    def tree(self, values, dtype=np.float32):
        """Our collections with KerasCV's values; leaves out what DeepLab does not use."""
        flat = {self.ours[path]: np.asarray(value, dtype) for path, value in values.items() if path in self.ours}
        return traverse_util.unflatten_dict(flat, sep="/")

    def values(self, tree):
        """Our collections by KerasCV's paths."""
        flat = traverse_util.flatten_dict(tree, sep="/")
        return {path: np.asarray(flat[ours]) for path, ours in self.ours.items() if ours in flat}


def guide_rule():
    """The optimizer of the guide, and its schedule."""
    config = load_config("kerascv_guide")
    duration = parse_duration(config.train.duration, field="train.duration")
    assert duration.unit == "steps"
    return optimizer.make(config.optimizer, int(duration.value), parts=PARTS)


def recording(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule with a state (gradients of the last update, own state)."""

    def update(gradients, state, params):
        updates, own = rule.update(gradients, state[1], params)
        return updates, (gradients, own)

    return optax.GradientTransformation(lambda params: (params, rule.init(params)), update)


def guide_step(dtype="float32"):
    """The guide's training step of ours, its gradients kept in the optimizer's state."""
    config = load_config("kerascv_guide")
    rule, schedule = guide_rule()
    return make_train_step(
        build_model(config.model, CLASSES, compute_dtype=dtype),
        recording(rule),
        losses.make_loss(config.loss, num_classes=CLASSES),
        learning_rate=schedule,
        ignored_pixels=config.eval.ignored_pixels,
    )


def set_optimizer_state(rule, params, momentums, iterations: int):
    """The rule's state with these momentum buffers after so many steps."""
    return optax.tree.set(rule.init(params), trace=momentums, count=np.int32(iterations))


def train_state(variables, momentums, iterations: int) -> TrainState:
    """The state before a step of `guide_step`."""
    params = variables["params"]
    own = set_optimizer_state(guide_rule()[0], params, momentums["params"], iterations)
    return TrainState(
        step=np.int32(iterations),
        examples_seen=np.uint32(0),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=(params, own),
        rng=np.zeros(2, np.uint32),
    )


def momentums_of(state: TrainState):
    """The momentum buffers of a state of `guide_step`."""
    return optax.tree.get(state.opt_state[1], "trace")


def gradients_of(state: TrainState):
    """The gradients that led to a state of `guide_step`."""
    return state.opt_state[0]
