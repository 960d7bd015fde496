"""Text that comes from files and file names, made safe to print."""

import unicodedata

# Joiners are part of the spelling of Persian, of Indic languages and of emoji, and change nothing around them.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Replaces characters that act on a terminal, or cannot be encoded, by their escapes, such as `\\x1b` and `\\n`.

    These are control characters, line breaks, marks that reverse the direction of the text, and halves of surrogate
    pairs, which stand for the invalid bytes of a file name.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if _is_harmless(character) else _escape(character) for character in text)


def _is_harmless(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] != "C" and category not in ("Zl", "Zp") or character in _JOINERS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
