"""StableHLO as `jax.export` serializes it: one file for processors, GPUs and TPUs, which JAX alone can run.

    from jax import export
    network = export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
    logits = network.call(images)

JAX promises to read such a file for six months after the release that wrote it, and one of a newer release for three
weeks (docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).
"""

import jax
import jax.export

from deeplab_jax.export.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(program: Program) -> bytes:
    """The program, lowered for every platform of `PLATFORMS`."""
    exported = jax.export.export(jax.jit(program.function), platforms=PLATFORMS)(program.images())
    return bytes(exported.serialize())
