"""Operations that are faster than XLA:CPU's own. README.md lists them with the gain of each.

They have gradients of their own and can be differentiated in reverse mode only. Only `deeplab_jax.ops` imports this
package.
"""

from deeplab_jax.ops.cpu.backend import CPU

__all__ = ["CPU"]
