"""Every config field with its default and its meaning, read from `base_config()` and the comments beside its lines."""

import ast
import dataclasses
import inspect
import io
import itertools
import tokenize
from typing import Any

from ml_collections import ConfigDict

from deeplab_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the schema.

    Attributes:
      path: such as `train.seed`.
      type: of its values.
      default: None for a placeholder, which is unset.
      meaning: the comment in `base_config`; empty if there is none.
    """

    path: str
    type: str
    default: Any
    meaning: str


def read_fields() -> list[Field]:
    """The fields in the order of the source; those of a dict that one line sets share its meaning."""
    config, meanings = config_lib.base_config(), _meanings()
    fields = []
    for path, value in _leaves(config.to_dict()):
        meaning = meanings[path] if path in meanings else meanings[_group(path)]
        fields.append(Field(path, _type_name(config, path), value, meaning))
    order = list(meanings)
    return sorted(fields, key=lambda field: order.index(field.path if field.path in meanings else _group(field.path)))


def read_groups() -> dict[str, str]:
    """The groups of fields, each with the comment on its first line; empty if there is none."""
    return {path: meaning for path, meaning in _meanings().items() if path in config_lib.base_config()}


def _group(path: str) -> str:
    return path.rpartition(".")[0]


def _leaves(values: dict[str, Any], parent: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        pairs += _leaves(value, f"{parent}{key}.") if isinstance(value, dict) else [(parent + key, value)]
    return pairs


def _type_name(config: ConfigDict, path: str) -> str:
    *groups, field = path.split(".")
    for group in groups:
        config = config[group]
    return config.get_type(field).__name__


def _meanings() -> dict[str, str]:
    """By path, in the order of the source: the comment behind the line that sets it, and those below it."""
    source = inspect.getsource(config_lib.base_config)
    (function,) = ast.parse(source).body
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
    meanings, groups = {}, {"config": ""}
    for statement, following in itertools.pairwise(function.body):
        attribute = _attribute(statement)
        if attribute is None:
            continue
        path = groups[attribute.value.id] + attribute.attr
        groups |= {target.id: f"{path}." for target in statement.targets if isinstance(target, ast.Name)}
        lines = range(statement.lineno, following.lineno)
        meanings[path] = "\n".join(comments[line] for line in lines if line in comments)
    return meanings


def _attribute(statement: ast.stmt) -> ast.Attribute | None:
    """`model.padding` of `model.padding = ...`, `config.model` of `config.model = model = ...`."""
    if not isinstance(statement, ast.Assign):
        return None
    return next((target for target in statement.targets if isinstance(target, ast.Attribute)), None)
