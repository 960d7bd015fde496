"""Text files as people's editors save them."""

import codecs
import pathlib

from deeplab_jax.errors import UserError

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: pathlib.Path) -> list[str]:
    """Reads the lines of a text file in UTF-8, or in UTF-16 with a byte order mark, with line ends of any system.

    Raises:
      UserError: the file is missing or in another encoding; the message names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line} is not valid UTF-8 (byte {content[error.start]:#04x}); save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} contains zero bytes, so it is not a text file in UTF-8; save it as UTF-8")
    return text.splitlines()


def read_names(path: pathlib.Path) -> list[str]:
    """Reads a list of names without spaces, one per line.

    Raises:
      UserError: see `read_lines`.
    """
    return " ".join(read_lines(path)).split()
