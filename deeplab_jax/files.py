"""Writing files whole or not at all."""

import os
import pathlib

from deeplab_jax.errors import UserError


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file's content so that a reader sees the old file or the new one, never a part.

    Raises:
      UserError: the file cannot be written; nothing is left half-written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; check the folder and the disk's free space") from error
