"""Reads the headers of config files without running them.

A header is the docstring of the file: a sentence, indented commands, remarks, and lines `Data:`, `Score:`, `Hardware:`
and `Commit:`, in any order. A value continues until the next such line or an empty line.
"""

import ast
import dataclasses
import pathlib
import re

from deeplab_jax.config.loading import config_folders
from deeplab_jax.errors import UserError

_FACT = re.compile(r"(Data|Score|Hardware|Commit): *(.*)")


@dataclasses.dataclass(frozen=True)
class ConfigDescription:
    """The header of a config file.

    Attributes:
      name: the name that `--config` takes.
      summary: the first paragraph.
      arguments: the docstring of `get_config`, which names the arguments.
      commands: the commands that run the experiment, one line each.
      data: data set and splits.
      score: the score it reached, or "not run".
      hardware: machine and time of that run; empty if it was not run.
      commit: commit that reached the score; empty if it was not run.
    """

    name: str
    summary: str
    arguments: str
    commands: tuple[str, ...]
    data: str = ""
    score: str = ""
    hardware: str = ""
    commit: str = ""


def describe_config(path: pathlib.Path) -> ConfigDescription:
    """Reads the header of a config file.

    Raises:
      UserError: the file is not valid Python.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"config {path}, line {error.lineno}: {error.msg}") from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config"]
    lines = (ast.get_docstring(tree) or "").splitlines()
    return ConfigDescription(
        name=path.stem,
        summary=_join(_first_paragraph(lines)),
        arguments=_join((functions and ast.get_docstring(functions[0]) or "").splitlines()),
        commands=_commands(lines),
        **_facts(lines),
    )


def list_configs() -> list[ConfigDescription]:
    """Describes every built-in config, sorted by name."""
    # As `find_config`: the first folder is the package's own.
    files = {file.stem: file for folder in config_folders()[:1] for file in folder.glob("*.py")}
    return [describe_config(files[name]) for name in sorted(files)]


def _first_paragraph(lines: list[str]) -> list[str]:
    return lines[: lines.index("")] if "" in lines else lines


def _commands(lines: list[str]) -> tuple[str, ...]:
    indented = "\n".join(line.strip() for line in lines if line.startswith("    "))
    return tuple(_join([command]) for command in indented.replace("\\\n", " ").splitlines())


def _facts(lines: list[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    current = None
    for line in lines:
        match = _FACT.fullmatch(line)
        if match:
            current = match[1].lower()
            facts[current] = match[2]
        elif not line:
            current = None
        elif current:
            facts[current] += f" {line.strip()}"
    return facts


def _join(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
