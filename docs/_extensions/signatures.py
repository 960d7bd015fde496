"""Docstrings and signatures as the source has them.

Names in signatures go without other packages' modules, and Flax modules without the fields that each of them has.
"""

import re

from sphinx.application import Sphinx

_FLAX_FIELDS = re.compile(r", parent: [^=]*= <flax\.linen\.module\._Sentinel object>, name: str \| None = None\)")
# Names of this package stay whole, so that they become links; the page shows their last part.
_FOREIGN_MODULES = re.compile(r"(?<![\w.'])(?!deeplab_jax\.)(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
_AS_WRITTEN = {
    "str | type[Any] | dtype | SupportsDType": "DTypeLike",
    "<class 'jax.numpy.float32'>": "float32",
}


def as_written(signature: str) -> str:
    """An annotation or a list of parameters, from what `inspect` makes of it."""
    signature = _FOREIGN_MODULES.sub("", _FLAX_FIELDS.sub(")", signature))
    for resolved, written in _AS_WRITTEN.items():
        signature = signature.replace(resolved, written)
    return signature


def keep_colons(lines: list[str]) -> list[str]:
    """A docstring whose `Returns:` and `Yields:` begin with an empty piece of text.

    Napoleon takes what stands before the first line's colon for a type, which signatures say here.
    """
    kept = []
    for line in lines:
        kept.append(line)
        if line.strip() in ("Returns:", "Yields:"):
            kept.append(f"{line[: len(line) - len(line.lstrip())]}  \\ ")
    return kept


def _process_signature(app, what, name, obj, options, signature, returned):
    return signature and as_written(signature), returned and as_written(returned)


def _process_docstring(app, what, name, obj, options, lines):
    lines[:] = keep_colons(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-signature", _process_signature)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before Napoleon
    return {"parallel_read_safe": True}
