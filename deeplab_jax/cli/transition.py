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


def from_network(network, config, **options):
    from deeplab_jax.inference.predictor import Predictor

    make = Predictor.from_network if hasattr(Predictor, "from_network") else Predictor.from_pretrained
    return make(network, config, **options)


def start_video(predictor, smoothing):
    if hasattr(predictor, "start_video"):
        return predictor.start_video(smoothing=smoothing)
    return predictor.smoothed(smoothing)


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
