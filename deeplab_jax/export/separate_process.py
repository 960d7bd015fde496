"""Conversion to TFLite in a process of its own, which ends with TensorFlow's memory and captures its messages."""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.export

from deeplab_jax.errors import UserError
from deeplab_jax.export.program import ExportOptions, Program


def serialize_tflite(program: Program) -> bytes:
    """Serializes a program as `tflite.serialize` does.

    Raises:
      UserError: TensorFlow is not installed, or it cannot convert the program.
    """
    exported = jax.export.export(jax.jit(program.function), platforms=("cpu",))(program.images())
    with tempfile.TemporaryDirectory() as folder:
        given, written = pathlib.Path(folder, "program.stablehlo"), pathlib.Path(folder, "program.tflite")
        given.write_bytes(exported.serialize())
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, os.fspath(given), os.fspath(written)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode != 0 or not written.is_file():
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"the network cannot be converted to TFLite: {last}")
        return written.read_bytes()


def _convert(given: pathlib.Path, written: pathlib.Path) -> None:
    """Converts the file of `serialize_tflite`."""
    from deeplab_jax.export import tflite

    exported = jax.export.deserialize(bytearray(given.read_bytes()))
    (images,), (result,) = exported.in_avals, exported.out_avals
    batch, height, width, channels = images.shape
    program = Program(
        apply=lambda _, images: exported.call(images),
        variables=None,
        channels=channels,
        classes=result.shape[-1],
        needs_multiples=False,
        options=ExportOptions(size=(height, width), batch=batch),
    )
    written.write_bytes(tflite.serialize(program))


if __name__ == "__main__":
    try:
        _convert(*map(pathlib.Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
