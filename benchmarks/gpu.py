"""Measures and checks deeplab_jax on one GPU: `python -m benchmarks.gpu`, in less than eight minutes.

It needs JAX with CUDA (`pip install 'deeplab_jax[cuda12]'` or `[cuda13]`) and nothing from the network. If PyTorch is
there, the same networks run in it, and both take turns. Parts that do not fit into the time are left out and named.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import machine, runner
from benchmarks.gpu_report import OURS, render
from benchmarks.rows import Side
from benchmarks.runner import Worker, WorkerError

_WORKER, _TORCH = "benchmarks.gpu_worker", "benchmarks.peers.gpu_torch"
# The sides share a GPU. JAX allocates a share of its memory at once, which must leave enough for PyTorch.
_ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}
_SIZES = {"guide": 512, "resnet101": 513, "segformer": 512}
_TOY_SIZES = {"quickstart": 64}
_INFER = {"batches": (1, 32), "size": 512, "images": 128}
_MINUTES = 8.0  # the needs and limits of the parts are stated for this time


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the run.

    Attributes:
      name: the part: `equality`, `step/NETWORK`, `infer` or `resume`.
      needed: seconds; the part is left out if fewer remain.
      limit: seconds after which its processes are ended. Both are of a run of eight minutes; longer ones have more.
      measure: measures it in that many seconds.
    """

    name: str
    needed: float
    limit: float
    measure: Callable[[float], dict[str, Any]]


class Session:
    """The settings of a run, and what the parts have in common.

    Args:
      toy: tiny sizes, also without a GPU.
      batch: images per train step.
      torch_python: an interpreter with PyTorch; None leaves PyTorch out.
      folder: a folder for files.
      say: called with lines of text.
    """

    def __init__(
        self, *, toy: bool, batch: int, torch_python: str | None, folder: pathlib.Path, say: Callable[[str], None]
    ):
        self._toy, self._batch, self._folder, self._say = toy, batch, folder, say
        self._pythons = {"ours": sys.executable, "torch": torch_python}
        self._sizes = _TOY_SIZES if toy else _SIZES

    def parts(self) -> list[Part]:
        """The parts in the order in which they run: what matters most first."""
        steps = [Part(f"step/{name}", 45, 130, self._step(name)) for name in self._sizes]
        return [
            Part("equality", 40, 130, self._equality),
            *steps,
            Part("resume", 40, 100, self._resume),
            Part("infer", 45, 120, self._infer),
        ]

    def _equality(self, seconds: float) -> dict[str, Any]:
        size = 33 if self._toy else 65
        task = {"kind": "equality", "networks": list(self._sizes), "size": size, "seconds": seconds / 2}
        return self._in_turns({OURS: Side(OURS, _WORKER, task)}, 1, seconds)

    def _step(self, network: str) -> Callable[[float], dict[str, Any]]:
        def measure(seconds: float) -> dict[str, Any]:
            task = {"kind": "step", "network": network, "steps": 1 if self._toy else 10}
            task |= {"size": self._sizes[network], "batch": 2 if self._toy else self._batch}
            return self._in_turns(self._sides(task), 1 if self._toy else 3, seconds)

        return measure

    def _infer(self, seconds: float) -> dict[str, Any]:
        task = {"kind": "infer", "networks": list(self._sizes)}
        task |= {"batches": (1, 2), "size": 64, "images": 2} if self._toy else _INFER
        return self._in_turns(self._sides(task), 1 if self._toy else 3, seconds)

    def _resume(self, seconds: float) -> dict[str, Any]:
        task = {"steps": 30 if self._toy else 100, "size": 32 if self._toy else 64, "seconds": seconds - 5}
        return self._in_turns({OURS: Side(OURS, "benchmarks.gpu_resume", task)}, 1, seconds)

    def _sides(self, task: Mapping[str, Any]) -> dict[str, Side]:
        sides = {OURS: Side(OURS, _WORKER, task, environment=_ENVIRONMENT)}
        if self._pythons["torch"]:
            sides["PyTorch"] = Side("PyTorch", _TORCH, task | {"compile": False}, "torch")
            sides["PyTorch, compiled"] = Side("PyTorch, compiled", _TORCH, task | {"compile": True}, "torch")
        return sides

    def _in_turns(self, sides: Mapping[str, Side], repetitions: int, seconds: float) -> dict[str, Any]:
        """Warms all sides up at the same time, lets them take turns, and returns the results of those that work.

        Raises:
          WorkerError: our side failed.
        """
        workers, results = {}, {}
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
            common = {"folder": folder, "pair_folder": folder, "repetitions": repetitions, "timeout": seconds}
            common |= {"options": {"toy": self._toy}, "in_turns": True}
            for name, side in sides.items():
                workers[name] = stack.enter_context(Worker(side, self._pythons, **common))
            waiting = [worker for worker in workers.values() if worker.asks()]
            while waiting:
                waiting = [worker for worker in waiting if worker.take_turn()]
            for name, worker in workers.items():
                try:
                    results[name] = worker.result()
                except WorkerError as error:
                    if name == OURS:
                        raise
                    self._say(f"without {name}: {error}")
        return results


def run(parts: Sequence[Part], *, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the parts that fit into the time.

    Args:
      parts: the parts, the most important ones first.
      seconds: the time for all of them.
      say: called with a line per part.

    Returns:
      `parts`: the results by name; `left_out`: the reasons by name.
    """
    deadline, results, left_out = time.monotonic() + seconds, {}, {}
    stretch = seconds / (60 * _MINUTES)
    for part in parts:
        remaining = deadline - time.monotonic()
        if remaining < part.needed * stretch:
            left_out[part.name] = f"{max(0, remaining):.0f} of {seconds:.0f} seconds remained"
        else:
            say(f"{part.name} ({remaining:.0f} seconds remain)")
            try:
                results[part.name] = part.measure(min(part.limit * stretch, remaining))
            except WorkerError as error:
                left_out[part.name] = str(error)
        if part.name in left_out:
            say(f"{part.name} is left out: {left_out[part.name]}")
    return {"parts": results, "left_out": left_out}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts and writes the results. Returns 1 if a part failed or a check does not hold."""
    args = _parser().parse_args(argv)
    torch_python = args.torch_python
    if torch_python is None and importlib.util.find_spec("torch") is not None:
        torch_python = sys.executable
    if torch_python is None:
        _say("PyTorch is not installed here, so its rows are left out; give another Python with --torch-python")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        options = {"toy": args.toy, "batch": args.batch, "torch_python": torch_python, "say": _say}
        session = Session(folder=pathlib.Path(folder), **options)
        found = run(session.parts(), seconds=60 * args.minutes, say=_say)
    found |= {
        "toy": args.toy,
        "seconds": time.monotonic() - start,
        "machine": machine.describe(),
        "commit": runner.commit(),
        "date": datetime.date.today().isoformat(),
    }
    page, failed = render(found)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.output / "gpu.md").write_text(page)
    print(page)
    for line in failed:
        _say(line)
    return 1 if failed or found["left_out"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Speed and correctness on one GPU.", allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=_MINUTES, help="time for everything (default: 8)")
    parser.add_argument("--batch", type=int, default=16, help="images per train step (default: 16)")
    parser.add_argument(
        "--torch-python", metavar="PYTHON", help="interpreter with PyTorch (default: this one, if PyTorch is installed)"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("gpu-results"), help="folder for gpu.json and gpu.md"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, also without a GPU, to check that it works")
    return parser


def _say(text: str) -> None:
    print(f"benchmarks.gpu: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
