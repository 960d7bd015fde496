"""StableHLO, serialized by `jax.export`: one file for CPU, CUDA and TPU. It runs in JAX without this package.

    from jax import export
    network = export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
    logits = network.call(images)

JAX reads files that are up to six months older, or up to three weeks newer, than itself
(docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import jax
import jax.export

from deeplab_jax.export.program import Program

#: Platforms that a StableHLO file and a SavedModel run on.
PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(program: Program) -> bytes:
    """Serializes the program, lowered for every platform of `PLATFORMS`."""
    exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(program.images())
    return bytes(exported.serialize())
