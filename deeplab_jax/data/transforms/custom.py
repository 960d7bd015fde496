"""Your own function as a transform of training examples.

`config.data.transform` names it, either as `module:function`, which is imported, or as the name under which
`register_transform` has stored it.
"""

import dataclasses
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from deeplab_jax.errors import UserError, suggest
from deeplab_jax.labels import IGNORE_LABEL

#: Takes an image (height, width, channels), its label (height, width) and the random generator of this example, and
#: returns another image and label. Sizes may change. All random numbers have to come from the generator.
Transform = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

_registered: dict[str, Transform] = {}
_SUGGESTED = 3  # functions in an error message


def register_transform(name: str, function: Transform) -> Transform:
    """Makes a function available as `config.data.transform`.

    Registering the same name again replaces the earlier function, so a notebook cell can be run twice.

    Args:
      name: its name in configs, without a colon.
      function: takes a uint8 image (height, width, 3), its uint8 label (height, width) and a `numpy.random.Generator`,
        and returns another image and label of the same types.

    Returns:
      `function` itself.

    Raises:
      UserError: the name has a colon or is empty.
    """
    if not name or ":" in name:
        raise UserError(f"transform name {name!r} must not be empty or contain a colon")
    _registered[name] = function
    return function


@dataclasses.dataclass(frozen=True)
class CustomTransform:
    """A function of a user, whose results are checked.

    Attributes:
      name: the value of `config.data.transform`.
      function: the function.
      num_classes: number of classes of the data set.
    """

    name: str
    function: Transform
    num_classes: int

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, example: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Calls the function with copies, which it may change.

        Args:
          image: the image.
          label: its label.
          rng: random generator of this example.
          example: id of the example, for errors.

        Raises:
          UserError: the function raised an error, or returned something else than an image and a label.
        """
        where = f"data.transform={self.name!r}"
        try:
            result = self.function(image.copy(), label.copy(), rng)
        except Exception as error:
            raise UserError(f"{where} failed on example {example}: {_describe(error)}") from error
        if problem := self._problem(result, image):
            raise UserError(f"{where} {problem} (example {example})")
        return np.ascontiguousarray(result[0]), np.ascontiguousarray(result[1])

    def _problem(self, result: Any, original: np.ndarray) -> str | None:
        """Says what is wrong with the result for an image, if anything is."""
        if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(r, np.ndarray) for r in result):
            return "must return two arrays, an image and its label"
        image, label = result
        if image.ndim != 3 or image.dtype != original.dtype or image.shape[-1] != original.shape[-1]:
            return (
                f"returned an image of {image.dtype} {image.shape}; it must be {original.dtype} (height, width, "
                f"{original.shape[-1]})"
            )
        if label.dtype != np.uint8 or label.shape != image.shape[:2] or not label.size:
            return f"returned a label of {label.dtype} {label.shape}; it must be uint8 {image.shape[:2]}"
        known = np.bincount(label.ravel(), minlength=IGNORE_LABEL + 1)[self.num_classes : IGNORE_LABEL]
        if known.any():
            wrong = self.num_classes + int(np.flatnonzero(known)[0])
            return f"returned the label {wrong}, which is not a class; labels must not be interpolated"
        return None


def find_transform(name: str) -> Transform:
    """Returns the function that `config.data.transform` names.

    A module is also looked for in the working directory, as `python -m` does.

    Raises:
      UserError: the name is not registered, or the function cannot be imported.
    """
    if ":" not in name:
        if name in _registered:
            return _registered[name]
        known = suggest(name, _registered) if _registered else ""
        raise UserError(
            f"data.transform={name!r} is not registered{known or '; write module:function to import a function'}"
        )
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # stays there: worker processes inherit it and import the module, too
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(f"data.transform={name!r} cannot be imported: {_describe(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        # A module can have hundreds.
        nearest = difflib.get_close_matches(function_name, functions, n=_SUGGESTED, cutoff=0)
        hint = suggest(function_name, nearest) if nearest else ""
        raise UserError(f"data.transform={name!r}: {module_name} has no function {function_name!r}{hint}")
    return function


def _describe(error: Exception) -> str:
    """The type and message of an error on one line, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
