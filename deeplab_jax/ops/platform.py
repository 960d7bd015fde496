"""One operation in two formulations, its own on CPUs and the plain one everywhere else; and what XLA:CPU keeps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Of these, convolutions and pooling are XLA's own operations, of which its partitioner knows the halos.
UNCHANGED = ("plain", "spatial")


def on_cpu(fast: Callable, fast_backward: Callable, *, plain: Callable, plain_backward: Callable) -> Callable:
    """A function of arrays that is `fast` where the program runs on a CPU and `plain` elsewhere, in both directions.

    The platform is chosen as the program is lowered, so that what is traced here can run, or be exported, elsewhere.
    The choice stands inside a function with a gradient of its own, whose residuals are the arguments: differentiating
    `lax.platform_dependent` itself stores what every branch's gradient would like to find, for instance a shifted copy
    of the image for each tap of a depthwise kernel. It can be differentiated in reverse mode only.

    Args:
      fast: of some arrays, returns one.
      fast_backward: of the same arrays and a cotangent, returns the tuple of their cotangents.
      plain: computes what `fast` does.
      plain_backward: computes what `fast_backward` does.
    """

    @jax.custom_vjp
    def operation(*arrays):
        return lax.platform_dependent(*arrays, cpu=fast, default=plain)

    def forward(*arrays):
        return operation(*arrays), arrays

    def backward(arrays, cotangent):
        return lax.platform_dependent(*arrays, cotangent, cpu=fast_backward, default=plain_backward)

    operation.defvjp(forward, backward)
    return operation


def stored(x: Float[Array, "..."], *, formulation: str = "auto") -> Float[Array, "..."]:
    """The array, which a program for CPUs computes once, however many read it.

    XLA:CPU repeats cheap operations wherever their result is read: what reads the sum of a residual unit would compute
    those of all units before it again. A division it does not repeat, and does not know this one to be by 1.

    Args:
      x: any array; the result has its values.
      formulation: see `deeplab_jax.ops`.
    """
    return x if formulation in UNCHANGED else _stored(x)


@jax.custom_vjp
def _stored(x):
    return lax.platform_dependent(x, cpu=lambda x: x / (1 + jnp.minimum(jnp.abs(x), 0)), default=lambda x: x)


_stored.defvjp(lambda x: (_stored(x), None), lambda _, cotangent: (cotangent,))


def after(array, other):
    """The array, which cannot be used before `other` is computed.

    A kernel after its own gradient: nothing but the optimizer waits for that gradient, so even where XLA:CPU orders a
    step for memory it would put them all off to the end, and every image would be kept until then.

    An image after its cotangent: what it is computed from by cheap operations, BatchNorm's input for instance, is kept
    for a gradient in any case. Without a reason to wait XLA:CPU takes the image of the forward pass, or pads or
    transposes it there already, and keeps that too.

    XLA's barriers do not outlive compilation; zero times a value does.
    """
    return array + 0 * other[(0,) * other.ndim].astype(array.dtype)


def transposed(bilinear: Callable, *, in_order: bool = False) -> Callable:
    """The backward function of a function that is linear in each of its two arguments; does not compute its value.

    With `in_order` the second argument's gradient is computed first.
    """

    def backward(x, kernel, cotangent):
        (kernel_cotangent,) = jax.linear_transpose(lambda kernel: bilinear(x, kernel), kernel)(cotangent)
        if in_order:
            kernel = after(kernel, kernel_cotangent)
        (x_cotangent,) = jax.linear_transpose(lambda x: bilinear(x, kernel), x)(cotangent)
        return x_cotangent, kernel_cotangent

    return backward
