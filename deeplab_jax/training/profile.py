"""Traces a few training steps with JAX's profiler."""

import contextlib
import pathlib
from typing import Any

import jax

from deeplab_jax.storage.local_copies import local_output

_WARMUP_STEPS = 2  # they compile and fill the input pipeline


class StepProfiler:
    """Traces `num_steps` steps to a folder, starting after two warm-up steps. A context manager.

    Args:
      folder: gets `perfetto_trace.json.gz`, which Perfetto opens, and files for TensorBoard.
      num_steps: number of steps to trace; 0 disables.
      first_step: step that the run starts or continues at, counted from 0.
      total_steps: number of training steps.
    """

    def __init__(self, folder: pathlib.Path, num_steps: int, *, first_step: int, total_steps: int):
        self._folder, self._trace = folder, contextlib.ExitStack()
        self._begin = first_step + _WARMUP_STEPS + 1
        self._end = min(self._begin + num_steps, total_steps + 1)

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._trace.close()

    def before_step(self, step: int, state: Any) -> None:
        """Starts or stops the trace if due before `step`, which is counted from 1.

        Args:
          step: the next step; `total_steps + 1` after the last.
          state: the training state. It is waited for, so the trace contains no other step.
        """
        if self._begin >= self._end or step not in (self._begin, self._end):
            return
        jax.block_until_ready(state)
        if step == self._end:
            self._trace.close()
        else:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of the interpreter would be most of the trace
            folder = self._trace.enter_context(local_output(self._folder))
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self._trace.callback(jax.profiler.stop_trace)
