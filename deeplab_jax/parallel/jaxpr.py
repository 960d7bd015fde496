"""Walks the equations of a traced program."""

from collections.abc import Iterator
from typing import Any

from jax.extend import core


def equations(jaxpr: core.Jaxpr, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every equation, including those of inner jaxprs, with the path of the module it belongs to."""
    for eqn in jaxpr.eqns:
        path = "/".join(filter(None, (prefix, str(eqn.source_info.name_stack))))
        yield path, eqn
        for inner in _inner(eqn.params):
            yield from equations(inner, path)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr]:
    inner = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                inner.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                inner.append(item)
    return inner
