"""The training state: everything a train step reads and updates."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, PyTree

from deeplab_jax.models import initial_variables, jit_initializer


@flax.struct.dataclass
class TrainState:
    """Parameters, batch statistics and optimizer state after `step` steps and `examples_seen` examples.

    Fields are typed loosely because the same tree may hold arrays, shapes or shardings.

    Attributes:
      step: int32 scalar.
      examples_seen: uint32 scalar; the position in the training data.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
      opt_state: the optimizer's state.
      rng: base key of the run, uint32 (2,). Each step derives its own key with `jax.random.fold_in`.
      ema_variables: exponential moving averages of `variables`; None unless `train.ema_decay` is set.
    """

    step: PyTree
    examples_seen: PyTree
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    rng: PyTree
    ema_variables: PyTree = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `model.apply` takes during training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated_variables(self) -> dict[str, Any]:
        """The variables for evaluation and prediction: the averages if the run keeps them."""
        return self.variables if self.ema_variables is None else self.ema_variables

    def with_averages(self) -> "TrainState":
        """Returns this state with averages that start as a copy of the variables, since a step donates both."""
        return self.replace(ema_variables=jax.tree.map(jax.numpy.copy, self.variables))

    def to_items(self) -> dict[str, PyTree]:
        """Splits the state into the items of a checkpoint: `variables`, which evaluation reads, and `training`."""
        training = {name: getattr(self, name) for name in ("step", "examples_seen", "opt_state", "rng")}
        if self.ema_variables is not None:
            training |= self.variables
        return {"variables": self.evaluated_variables, "training": training}

    def with_items(self, *, variables: PyTree, training: PyTree) -> "TrainState":
        """Returns this state with every field replaced from the items of a checkpoint; undoes `to_items`."""
        evaluated = variables if self.ema_variables is None else {"ema_variables": variables}
        return self.replace(**evaluated, **training)

    @classmethod
    def create(
        cls, model, optimizer, *, seed: int | Array, averages: bool = False, image_size: Sequence[int] | None = None
    ) -> "TrainState":
        """Creates the state before the first step.

        The function is traceable, so `jax.jit` can place the result with shardings.

        Args:
          model: the network.
          optimizer: the gradient transformation.
          seed: seed of the parameters and of the run's base key; uint32 if it is traced.
          averages: whether the state has `ema_variables`.
          image_size: (height, width) of training images, see `initial_variables`.
        """
        init_rng, rng = jax.random.split(jax.random.PRNGKey(seed))
        variables = initial_variables(model, init_rng, image_size=image_size)
        state = cls(
            step=jax.numpy.zeros((), jax.numpy.int32),
            examples_seen=jax.numpy.zeros((), jax.numpy.uint32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
            rng=rng,
        )
        return state.with_averages() if averages else state

    @classmethod
    def shapes(cls, model, optimizer, *, averages: bool = False) -> "TrainState":
        """Returns the shapes and dtypes of the state without computing anything."""
        return jax.eval_shape(lambda: cls.create(model, optimizer, seed=0, averages=averages))

    @classmethod
    def create_on(
        cls, sharding: "jax.sharding.Sharding | TrainState", model, optimizer, **options: Any
    ) -> "TrainState":
        """Compiles and runs `create`, and places every leaf by `sharding`, one for all leaves or a state of them."""
        return jit_initializer(lambda: cls.create(model, optimizer, **options), sharding)()
