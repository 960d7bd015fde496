"""Shows signatures as the source writes them.

Types of other packages lose their module, and Flax modules lose the fields that every Flax module has.
"""

import re

from sphinx.application import Sphinx

_FLAX_FIELDS = re.compile(r", parent: [^=]*= <flax\.linen\.module\._Sentinel object>, name: str \| None = None\)")
# Names of this package stay fully qualified so that they become links; the page shows their last part.
_FOREIGN_MODULES = re.compile(r"(?<![\w.'])(?!deeplab_jax\.)(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
_AS_WRITTEN = {
    "str | type[Any] | dtype | SupportsDType": "DTypeLike",
    "<class 'jax.numpy.float32'>": "float32",
}


def as_written(signature: str) -> str:
    """Shortens an annotation or a list of parameters that `inspect` formatted."""
    signature = _FOREIGN_MODULES.sub("", _FLAX_FIELDS.sub(")", signature))
    for resolved, written in _AS_WRITTEN.items():
        signature = signature.replace(resolved, written)
    return signature


def keep_colons(lines: list[str]) -> list[str]:
    """Starts the text of `Returns:` and `Yields:` with an empty piece of text.

    Otherwise Napoleon takes the text before the first colon for a type. Types are in the signatures.
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
