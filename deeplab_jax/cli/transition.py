"""Adapters to packages that are being rebuilt. Deleted once they are merged."""

import inspect
import logging
from collections.abc import Callable
from typing import Any


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function that may still take a console."""
    if "console" in inspect.signature(function).parameters:
        from rich.console import Console

        handlers = logging.getLogger("deeplab_jax").handlers
        quiet = all(handler.level >= logging.ERROR for handler in handlers)
        kwargs["console"] = Console(stderr=True, highlight=False, quiet=quiet)
    return function(*args, **kwargs)


def evaluate(name, *, config, split):
    from deeplab_jax.evaluation import evaluator

    if hasattr(evaluator, "evaluate"):
        return evaluator.evaluate(name, config=config, split=split)
    import pathlib

    from deeplab_jax import pretrained

    if isinstance(name, pathlib.Path):
        return call(evaluator.evaluate_workdir, name, config=config, split=split)
    return call(evaluator.evaluate_pretrained, call(pretrained.load, name), config=config, split=split)


def from_network(network, config, **options):
    from deeplab_jax.inference.predictor import Predictor

    make = Predictor.from_network if hasattr(Predictor, "from_network") else Predictor.from_pretrained
    return make(network, config, **options)


def create_folder(folder, what):
    from deeplab_jax import files

    (files.create_folder if hasattr(files, "create_folder") else files.make_folder)(folder, what)


def decode_examples(source, positions):
    from deeplab_jax import data

    return (data.decode_examples if hasattr(data, "decode_examples") else data.decoded)(source, positions)


def aot_report(config, topology, **options):
    from deeplab_jax.analysis import aot

    if "out" not in inspect.signature(aot.report).parameters:
        return aot.report(config, topology, **options)
    from rich.console import Console

    tables = []

    class Out:
        def print(self, item, **_):
            tables.append(item)

    values = aot.report(config, topology, **options, console=Console(stderr=True, highlight=False), out=Out())
    return tables, values


def list_configs():
    from deeplab_jax import config as config_lib

    if hasattr(config_lib, "list_configs"):
        return config_lib.list_configs()
    import ast
    import dataclasses

    @dataclasses.dataclass
    class ConfigDescription:
        name: str
        summary: str
        data: str = ""
        score: str = ""

    files = sorted(file for folder in config_lib.config_folders()[:1] for file in folder.glob("*.py"))
    texts = [ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in files]
    return [
        ConfigDescription(file.stem, " ".join(text.partition("\n\n")[0].split()))
        for file, text in zip(files, texts, strict=True)
    ]
