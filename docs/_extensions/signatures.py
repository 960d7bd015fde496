"""Signatures as the source has them: names without other packages' modules, and without what Flax adds to a module."""

import re

from sphinx.application import Sphinx

_FLAX_FIELDS = re.compile(r", parent: [^=]*= <flax\.linen\.module\._Sentinel object>, name: str \| None = None\)")
# Names of this package stay whole, so that they become links; the page shows their last part.
_FOREIGN_MODULES = re.compile(r"(?<![\w.'])(?!deeplab_jax\.)(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
_AS_WRITTEN = {
    "str | type[Any] | dtype | SupportsDType": "DTypeLike",
    "<class 'jax.numpy.float32'>": "float32",
    " -> P": " -> PartitionSpec",
}


def as_written(signature: str) -> str:
    """An annotation or a list of parameters, from what `inspect` makes of it."""
    signature = _FOREIGN_MODULES.sub("", _FLAX_FIELDS.sub(")", signature))
    for resolved, written in _AS_WRITTEN.items():
        signature = signature.replace(resolved, written)
    return signature


def _process(app, what, name, obj, options, signature, returned):
    return signature and as_written(signature), returned and as_written(returned)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("autodoc-process-signature", _process)
    return {"parallel_read_safe": True}
