"""Trained networks for other runtimes: StableHLO, TensorFlow's SavedModel, TFLite and ONNX.

Images go in as RGB of range 0-255; the network's own normalization is inside. Logits come out at the images' size,
or labels. The operations are the plain ones of `deeplab_jax.ops`, but for StableHLO and SavedModel of a fixed size, in
which a processor finds its faster formulation and other platforms the plain one.
"""

import os
import pathlib
import shutil
from typing import Any

from deeplab_jax.errors import UserError, suggest
from deeplab_jax.export import onnx, stablehlo, tensorflow
from deeplab_jax.export.program import ExportOptions, make_program, metadata, to_json
from deeplab_jax.files import write_atomically
from deeplab_jax.pretrained import PretrainedNetwork

FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")
METADATA_FILE = "deeplab_jax.json"  # in the folder `assets.extra` of a SavedModel, which is TensorFlow's for such files


def metadata_path(file_format: str, output: pathlib.Path) -> pathlib.Path:
    """Where the JSON file lies that describes an exported network: beside a file, inside a SavedModel."""
    if file_format == "savedmodel":
        return output / "assets.extra" / METADATA_FILE
    return output.with_name(f"{output.name}.json")


def export_network(
    network: PretrainedNetwork, file_format: str, output: pathlib.Path, options: ExportOptions
) -> dict[str, Any]:
    """Writes a network for another runtime, and a JSON file with its classes, palette, size and input contract.

    Args:
      network: with classes.
      file_format: of `FORMATS`.
      output: the file, or the folder of a SavedModel.
      options: what the exported network takes and returns.

    Returns:
      What the JSON file says.

    Raises:
      UserError: the output exists or cannot be written, the format cannot do what the options ask for, a package is
        not installed, or the network is a backbone alone.
    """
    if file_format not in FORMATS:
        raise UserError(f"export format {file_format!r} does not exist{suggest(file_format, FORMATS)}")
    _check_options(file_format, options)
    description = metadata_path(file_format, output)
    for path in (output, description):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    program = make_program(network, options)
    values = metadata(network, program, file_format)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    if file_format == "savedmodel":
        _write_folder(output, lambda folder: tensorflow.save_saved_model(program, folder), to_json(values))
        return values
    content = {
        "stablehlo": stablehlo.serialize,
        "tflite": tensorflow.tflite,
        "onnx": lambda program: onnx.to_onnx(program, {"deeplab_jax": to_json(values)}),
    }[file_format](program)
    write_atomically(output, content)
    write_atomically(description, to_json(values).encode())
    return values


def _check_options(file_format: str, options: ExportOptions) -> None:
    if file_format in ("tflite", "onnx") and options.size is None:
        raise UserError(
            f"{file_format} needs a fixed size: padding and resizing are numbers in it; give --size HEIGHTxWIDTH"
        )
    if file_format == "tflite" and options.batch is None:
        raise UserError("tflite needs a fixed number of images; give --batch N")


def _write_folder(output: pathlib.Path, save, description: str) -> None:
    """Writes a folder whole or not at all."""
    temporary = output.with_name(output.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save(temporary)
        path = metadata_path("savedmodel", temporary)
        path.parent.mkdir(parents=True)
        path.write_text(description)
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}; check the folder and the disk's free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
