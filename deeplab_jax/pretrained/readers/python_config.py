"""Reader of configs that are Python files, as text. Parses them and runs nothing.

OpenMMLab's checkpoints contain the config they were trained with, as assignments of `dict(...)` calls and literals
(mmengine 0.10, `Config.pretty_text`).
"""

import ast
import warnings
from collections.abc import Mapping
from typing import Any

_MOST_CHARACTERS = 1 << 18


def read_assignments(text: str) -> dict[str, Any]:
    """Reads the top-level assignments of a config.

    Args:
      text: the source code.

    Returns:
      Each assigned name with its value: numbers, strings, None, and tuples, lists and dictionaries of values. Anything
      else is None, such as the result of a call other than `dict(...)`. Empty if the text is not Python or is too long.
    """
    if len(text) > _MOST_CHARACTERS:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escape sequences in paths
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    values: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                values[target.id] = _value(statement.value, values)
    return values


def lookup(values: Any, *names: str) -> Any:
    """Returns the value under nested names, None if there is none."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value if type(node.operand.value) in (int, float) else None
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Tuple):
        return tuple(_value(element, names) for element in node.elts)
    if isinstance(node, ast.List):
        return [_value(element, names) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return {key: _value(value, names) for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value, names) for keyword in node.keywords if keyword.arg is not None}
    return None
