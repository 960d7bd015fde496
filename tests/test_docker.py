"""The container files: they install from PyPI alone, with extras that exist, from files that the context contains."""

import fnmatch
import json
import pathlib
import re
import shlex
import tomllib

import pytest

from deeplab_jax.cli import parser
from deeplab_jax.cli.config_flags import parse_config
from deeplab_jax.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(path: pathlib.Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what follows them, without comments."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_containers_install_from_pypi_alone(path):
    found = instructions(path)
    assert {name for name, _ in found} <= {"FROM", "ARG", "COPY", "RUN", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    assert re.fullmatch(r"python:3\.(\d+)-slim", found[0][1])
    arguments = {
        name: value for instruction, given in found if instruction == "ARG" for name, value in [given.split("=")]
    }
    (run,) = (given for name, given in found if name == "RUN")
    install, remove = run.split(" && ")
    assert remove == "rm -r /src"
    *words, package = shlex.split(install)
    assert words == ["pip", "install", "--no-cache-dir"]
    extra = re.fullmatch(r"/src\[(.*)\]", package)[1]
    for name, value in arguments.items():
        extra = extra.replace(f"${{{name}}}", value)
    assert extra in PROJECT["project"]["optional-dependencies"]
    for name in ("ENTRYPOINT", "CMD", "VOLUME"):
        (words,) = (json.loads(given) for instruction, given in found if instruction == name)
        assert all(isinstance(word, str) for word in words)
    assert ("ENTRYPOINT", '["deeplab-jax"]') in found
    assert "deeplab-jax" in PROJECT["project"]["scripts"]


def is_ignored(name: str) -> bool:
    """Whether the context lacks a path: the last pattern that matches it or a folder above it decides."""
    ignored, parents = False, [name, *map(str, pathlib.PurePosixPath(name).parents)]
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            text = pattern.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(each, text) or fnmatch.fnmatch(each, f"*/{text}") for each in parents):
                ignored = not pattern.startswith("!")
    return ignored


def test_the_context_holds_what_the_wheel_is_built_from():
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*build["packages"], *build["force-include"], PROJECT["project"]["readme"], "pyproject.toml", "LICENSE"]
    needed += ["deeplab_jax/pretrained/presets.toml", "configs/quickstart.py"]
    assert [name for name in needed if not (ROOT / name).exists() or is_ignored(name)] == []
    unneeded = ["tests/conftest.py", "docs/pods.md", ".git/config", "deeplab_jax/__pycache__/files.pyc", "benchmarks"]
    assert [name for name in unneeded if not is_ignored(name)] == []


def test_commands_of_the_containers_parse():
    text = (ROOT / "docs" / "pods.md").read_text().replace("\\\n", " ")
    runs = re.findall(r"^docker run .*? deeplab-jax:(\w+) (.*)$", text, re.M)
    assert {tag for tag, _ in runs} == {path.stem.partition(".")[0] for path in FILES}
    for _, arguments in runs:
        _, args = parser.parse(shlex.split(arguments), COMMANDS)
        parse_config(args.config_arguments)
    built = re.findall(r"^docker build .*-f (\S+)", text, re.M)
    assert {ROOT / name for name in built} == set(FILES)
