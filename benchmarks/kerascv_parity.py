"""Compares how far our float32 training drifts from KerasCV's with how far KerasCV drifts from itself.

    python -m benchmarks.kerascv_parity --python PYTHON_WITH_KERAS_CV

Runs five steps of the guide on 64x64 images, two per step, from the same variables, three times: KerasCV on JAX,
KerasCV on TensorFlow, ours. Prints a table of the loss before each update and the distance of the parameters from
those of KerasCV on JAX after it, relative to the distance that KerasCV's five steps moved them. Needs 6 GB of disk
space in the temporary folder.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import jax
import numpy as np

from tests.support import kerascv_bridge

GOLDENS = pathlib.Path(__file__).parents[1] / "tests" / "goldens"
STEPS = 5


def run_kerascv(python: str, backend: str, folder: pathlib.Path) -> pathlib.Path:
    """Runs `make_kerascv.py` and returns the folder of its trajectory."""
    output = folder / backend
    output.mkdir()
    environment = os.environ | {"KERAS_BACKEND": backend}
    subprocess.run([python, str(GOLDENS / "make_kerascv.py"), "trajectory", str(output)], check=True, env=environment)
    return output


def read(folder: pathlib.Path, step: int, prefix: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a step, by the variable's path."""
    with np.load(folder / f"step{step}.npz") as arrays:
        return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def read_step(folder: pathlib.Path, step: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Reads the (loss, mean IoU, accuracy) of a step, and its batch."""
    with np.load(folder / f"step{step}.npz") as arrays:
        return arrays["scores"], {"image": arrays["images"], "label": arrays["labels"]}


def distance(ours, theirs) -> float:
    """Returns the Euclidean distance of two sets of parameters."""
    differences = jax.tree.map(lambda a, b: float(np.sum(np.square(a - b, dtype=np.float64))), ours, theirs)
    return float(np.sqrt(sum(jax.tree.leaves(differences))))


def main() -> None:
    """Runs all three and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python that has keras-cv, TensorFlow and JAX")
    python = parser.parse_args().python
    with np.load(GOLDENS / "kerascv_forward.npz") as arrays:
        bridge = kerascv_bridge.Bridge(json.loads(str(arrays["layout"])))
    with tempfile.TemporaryDirectory() as temporary:
        on_jax, on_tensorflow = (
            run_kerascv(python, backend, pathlib.Path(temporary)) for backend in ("jax", "tensorflow")
        )
        print_table(bridge, on_jax, on_tensorflow)


def print_table(bridge: kerascv_bridge.Bridge, on_jax: pathlib.Path, on_tensorflow: pathlib.Path) -> None:
    """Prints the table of two trajectories, and trains ours next to them."""

    def params(folder, step):
        return bridge.tree(read(folder, step, "variable/"))["params"]

    moved = distance(params(on_jax, 0), params(on_jax, STEPS))
    state = kerascv_bridge.train_state(
        bridge.tree(read(on_jax, 0, "variable/")), bridge.tree(read(on_jax, 0, "momentum/")), 0
    )
    run = jax.jit(kerascv_bridge.guide_step())
    print("| step | loss, KerasCV on JAX | ours | KerasCV on TensorFlow | parameters, ours | on TensorFlow |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for step in range(STEPS):
        scores, batch = read_step(on_jax, step)
        state, report = jax.device_get(run(state, batch))
        loss, other = float(report["loss_sum"] / report["loss_count"]), read_step(on_tensorflow, step)[0][0]
        reference = params(on_jax, step + 1)
        print(
            f"| {step + 1} | {scores[0]:.6f} | {loss - scores[0]:+.1e} | {other - scores[0]:+.1e} "
            f"| {distance(state.params, reference) / moved:.1e} "
            f"| {distance(params(on_tensorflow, step + 1), reference) / moved:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
