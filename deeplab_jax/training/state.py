"""What a training run is: everything a step reads and writes."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jaxtyping import PyTree

from deeplab_jax.models import initial_variables

# Initialization runs once and its programs, a random draw for each kernel, are long: XLA:CPU compiles them four times
# faster without optimizing them.
_INIT_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


@flax.struct.dataclass
class TrainState:
    """Parameters, batch statistics and optimizer state after `step` steps over `examples_seen` examples.

    As a tree it may hold shapes or shardings in the arrays' places, so the fields are typed loosely: `step` is an int32
    scalar, `examples_seen` a uint32 scalar, and `rng` the run's base key, uint32 (2,), from which a step derives its
    own by `jax.random.fold_in`. `ema_variables`, averages of `variables`, is None without `train.ema_decay`.
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
        """What `model.apply` takes while training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated_variables(self) -> dict[str, Any]:
        """What evaluation and prediction use: the averages if there are any."""
        return self.variables if self.ema_variables is None else self.ema_variables

    def with_evaluated(self, variables: dict[str, Any], **fields: Any) -> "TrainState":
        """This state with these `evaluated_variables` and other fields."""
        evaluated = variables if self.ema_variables is None else {"ema_variables": variables}
        return self.replace(**evaluated, **fields)

    def with_averages(self) -> "TrainState":
        """This state with averages that begin as a copy of the variables: a step donates both."""
        return self.replace(ema_variables=jax.tree.map(jax.numpy.copy, self.variables))

    @classmethod
    def create(
        cls, model, optimizer, *, seed: int, averages: bool = False, image_size: Sequence[int] | None = None
    ) -> "TrainState":
        """The state before the first step, with `ema_variables` if there are to be `averages`.

        It is traceable, so that `jax.jit` can place it by shardings. See `initial_variables` for
        `image_size`.
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
        """Shapes and dtypes of the state; computes nothing."""
        return jax.eval_shape(lambda: cls.create(model, optimizer, seed=0, averages=averages))

    @classmethod
    def create_on(
        cls, sharding: "jax.sharding.Sharding | TrainState", model, optimizer, **options: Any
    ) -> "TrainState":
        """`create`, compiled, with every leaf placed by `sharding`, or by that of its place in a state of them."""
        return cls.lower_create(sharding, model, optimizer, **options).compile()()

    @classmethod
    def lower_create(
        cls, sharding: "jax.sharding.Sharding | TrainState", model, optimizer, **options: Any
    ) -> jax.stages.Lowered:
        """The program that `create_on` compiles and runs, without arguments; `options` are those of `create`."""
        return _lower(lambda: cls.create(model, optimizer, **options), sharding)


def _lower(create, sharding=None):
    options = _INIT_COMPILER_OPTIONS.get(jax.default_backend())
    return jax.jit(create, out_shardings=sharding, compiler_options=options).lower()
