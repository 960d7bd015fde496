"""Reader of safetensors files (github.com/huggingface/safetensors): a length, a JSON header, and the values.

The library checks that every array lies inside the file and that none overlap. It would parse a header of any size.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import safetensors

from deeplab_jax import budget
from deeplab_jax.errors import UserError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name, sorted.

    Raises:
      UserError: the file is missing, damaged, or has arrays of an unsupported type.
    """
    try:
        content = budget.read_bytes(path)
        length = int.from_bytes(content[:8], "little")
        if length > len(content) - 8:
            raise ValueError(f"its header claims {length} bytes, but the file has {len(content)}")
        budget.parse_json(content[8 : 8 + length])  # within the limits of JSON
        tensors = sorted(safetensors.deserialize(content), key=lambda item: item[0])  # their order is random
        return {name: _array(name, tensor) for name, tensor in tensors}
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} is damaged: {reason}; expected a safetensors file") from None


def _array(name: str, tensor: dict) -> np.ndarray:
    if tensor["dtype"] not in _DTYPES:
        raise ValueError(f"{name!r} has the unsupported type {tensor['dtype']}")
    if len(tensor["shape"]) > budget.DIMENSIONS:
        raise ValueError(f"{name!r} has {len(tensor['shape'])} dimensions")
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
