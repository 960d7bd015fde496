"""The worker of single operations: those of the CPU backend of `deeplab_jax.ops`, or plain XLA.

The cross-entropy has one implementation and is compared with optax's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import operations, worker
from deeplab_jax import losses, ops
from deeplab_jax.cli import malloc


def build(operation: operations.Operation, kind: str):
    """Returns the function of x and, if there are any, weights or labels.

    Args:
      operation: the operation.
      kind: "cpu" for the CPU backend, "xla" for plain XLA.
    """
    chosen = ops.select("cpu") if kind == "cpu" else ops.XLA
    window = (operation.kernel,) * 2
    strides, padding = (operation.stride,) * 2, ops.lax_padding("symmetric", window, rate=operation.rate)
    if operation.kind in ("conv", "depthwise"):
        return functools.partial(
            chosen.conv_general_dilated,
            window_strides=strides,
            padding=padding,
            rhs_dilation=(operation.rate,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=operation.channels if operation.kind == "depthwise" else 1,
        )
    if operation.kind == "max-pool":
        return functools.partial(chosen.max_pool, window_shape=window, strides=strides, padding=padding)
    if operation.kind == "resize":
        return functools.partial(chosen.resize_bilinear, size=(operation.out_size,) * 2)
    if kind == "xla":
        return lambda x, labels: optax.softmax_cross_entropy_with_integer_labels(x, labels.astype(jnp.int32)).sum()
    return lambda x, labels: losses.softmax_cross_entropy(x, labels)[0]


def arguments(operation: operations.Operation) -> list[jax.Array]:
    """Returns x, and the weights of a convolution or the labels of a cross-entropy."""
    rng = np.random.default_rng(0)
    shapes = [(1, operation.size, operation.size, operation.channels)]
    if operation.kind == "conv":
        shapes.append((operation.kernel, operation.kernel, operation.channels, operation.features))
    if operation.kind == "depthwise":
        shapes.append((operation.kernel, operation.kernel, 1, operation.channels))
    values = [rng.standard_normal(shape, np.float32) for shape in shapes]
    if operation.kind == "cross-entropy":
        values.append(rng.integers(0, operation.channels, (1, operation.size, operation.size), np.uint8))
    return jax.device_put(values)


def _gradients(function, wanted: tuple[int, ...]):
    """Returns a function from the output's cotangent and the arguments to the cotangents of the wanted arguments."""

    def gradients(cotangent, *values):
        def of_wanted(*chosen):
            given = dict(zip(wanted, chosen, strict=True))
            return function(*(given.get(place, value) for place, value in enumerate(values)))

        return jax.vjp(of_wanted, *(values[place] for place in wanted))[1](cotangent)

    return gradients


def main() -> None:
    """Measures every operation in every direction."""
    task = worker.read_task()
    malloc.prepare_jax()
    seconds, multiply_adds = {}, {}
    for operation in operations.selected(task["quick"]):
        function, values = build(operation, task["ops"]), arguments(operation)
        output = jax.eval_shape(function, *values)
        cotangent = jax.device_put(np.random.default_rng(1).standard_normal(output.shape, np.float32))

        for direction, wanted in operation.directions().items():
            program = jax.jit(_gradients(function, wanted) if wanted else function)
            given = [cotangent, *values] if wanted else values
            times = worker.repeat(
                lambda program=program, given=given: jax.block_until_ready(program(*given)),
                warm_up=2,
                repetitions=task["repetitions"],
            )
            seconds[f"{operation.name()}, {direction}"] = times
            multiply_adds[f"{operation.name()}, {direction}"] = operation.multiply_adds() * max(len(wanted), 1)
    worker.report(seconds, packages=("jax", "jaxlib", "optax"), multiply_adds=multiply_adds)


if __name__ == "__main__":
    main()
