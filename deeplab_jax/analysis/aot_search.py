"""Searches for the largest batch that fits into a chip's memory, with few compilations."""

import math
from collections.abc import Callable

from deeplab_jax.analysis.aot_compile import CompiledProgram, TooLarge
from deeplab_jax.errors import UserError


def extrapolate_batch(first: tuple[int, int], second: tuple[int, int], usable: int) -> int:
    """The largest batch that needs at most `usable` bytes, if memory grows linearly. 0 if no batch fits.

    Args:
      first: a batch and the bytes it needs.
      second: another batch and the bytes it needs.
      usable: bytes of memory.

    Raises:
      ValueError: the larger batch does not need more memory.
    """
    (batch, size), (other_batch, other_size) = first, second
    slope = (other_size - size) / (other_batch - batch)
    if slope <= 0:
        raise ValueError(
            f"{other_batch} images need {other_size} bytes, which is not more than {size} for {batch} images"
        )
    return max(0, math.floor(batch + (usable - size) / slope))


def find_largest_batch(
    compile_at: Callable[[int], CompiledProgram | TooLarge], usable: int, *, first: int
) -> tuple[int, list[CompiledProgram | TooLarge]]:
    """Predicts the largest batch per chip from two compiled programs, then verifies the prediction.

    Memory does not always grow linearly. If the predicted program is too large, bisection finds the largest that fits.

    Args:
      compile_at: compiles the program for a number of images per chip.
      usable: bytes of a chip's memory.
      first: images per chip of the first program. The second has twice as many; all others are multiples of it.

    Returns:
      The prediction, and the programs in the order in which they were compiled.

    Raises:
      UserError: one of the first two programs does not fit.
    """
    programs = []
    for batch in (first, 2 * first):
        programs.append(compile_at(batch))
        if isinstance(programs[-1], TooLarge):
            raise UserError(f"{batch} images per chip do not fit, but the prediction needs them; start with fewer")
    predicted = extrapolate_batch(*((program.batch_per_chip, program.total) for program in programs), usable)
    predicted -= predicted % first
    fits, asked = 2, predicted // first  # in multiples of `first`
    if asked <= fits:
        return predicted, programs
    programs.append(compile_at(asked * first))
    too_large = fits if isinstance(programs[-1], CompiledProgram) else asked  # equal to fits: the prediction is right
    while too_large - fits > 1:
        asked = (fits + too_large) // 2
        programs.append(compile_at(asked * first))
        if isinstance(programs[-1], CompiledProgram):
            fits = asked
        else:
            too_large = asked
    return predicted, programs
