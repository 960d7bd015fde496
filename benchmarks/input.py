"""Measures what it costs to feed a train step: `python -m benchmarks.input CONFIG --data-dir DIR` prints a table.

CPU time is what counts. It hardly depends on what else the machine does, and the images that a host can feed per second
are its cores divided by the CPU seconds per image. The time of this process and of its data workers is the difference
between two moments in the middle of a stream, so starting and filling the buffers is not part of it.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import jax
import numpy as np

from deeplab_jax import data
from deeplab_jax.config import load_config
from deeplab_jax.data.pipeline import decode_example
from deeplab_jax.data.transforms import augment
from deeplab_jax.errors import UserError

_WARM_UP = 6  # batches: more than the buffers of two workers hold
_TICKS = os.sysconf("SC_CLK_TCK")

#: Reduced decoding in OpenCV, by factor: libjpeg then computes smaller inverse DCTs.
REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}


def cpu_seconds(pid: int | None = None) -> float:
    """Returns the CPU time of a process, by default this one, and of its descendants that are still running."""
    pid = os.getpid() if pid is None else pid
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [int(each) for file in pathlib.Path(f"/proc/{pid}/task").glob("*/children")
                    for each in file.read_text().split()]  # fmt: skip
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(map(cpu_seconds, children))


def measure_pipeline(source, config: Any, num_batches: int) -> tuple[float, float]:
    """Returns CPU seconds and wall seconds per image of the training batches of a config."""
    batches = data.train_batches(source, config.data, seed=0, pad_color=data.pad_color(config.model))
    for _ in range(_WARM_UP):
        next(batches)
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    batches.close()
    return cpu / num_batches / config.data.batch_size, wall / num_batches / config.data.batch_size


def measure_stages(source, config: Any, count: int) -> dict[str, float]:
    """Returns CPU seconds per image of reading, decoding and transforming examples, one after the other."""
    cv2.setNumThreads(1)
    rng, pad_color = np.random.default_rng(0), data.pad_color(config.model)
    indices = rng.integers(len(source), size=count)
    stored, read = _timed(lambda: [source[int(i)] for i in indices])
    images, image = _timed(lambda: [decode_example(each | {"label": np.zeros((1, 1), np.uint8)}) for each in stored])
    labels, label = _timed(lambda: [decode_example(each | {"image": np.zeros((1, 1), np.uint8)}) for each in stored])
    pairs = [(one["image"], other["label"]) for one, other in zip(images, labels, strict=True)]
    _, transforms = _timed(lambda: [augment(*pair, rng, config.data, pad_color=pad_color) for pair in pairs])
    stages = {"read": read, "decode image": image, "decode mask": label, "transform": transforms}
    return {name: seconds / count for name, seconds in stages.items()}


def measure_reduced(source, count: int, factor: int, size: tuple[int, int]) -> dict[str, float]:
    """Compares decoding at a reduced scale with decoding in full, both followed by resizing to (height, width).

    Returns:
      CPU seconds per image of both, and the mean and largest absolute difference of a value between 0 and 255.
    """
    cv2.setNumThreads(1)
    encoded = [source[int(i)]["image"] for i in np.linspace(0, len(source) - 1, count)]
    encoded = [np.frombuffer(each, np.uint8) for each in encoded if each.startswith(b"\xff\xd8")]
    if not encoded:
        raise UserError("the data set has no JPEGs")

    def decode(flag: int, convert: bool) -> list[np.ndarray]:
        found = []
        for each in encoded:
            image = cv2.imdecode(each, flag)
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if convert else image
            found.append(data.resize_image(image, size))
        return found

    full, full_seconds = _timed(lambda: decode(cv2.IMREAD_COLOR_RGB, False))
    reduced, reduced_seconds = _timed(lambda: decode(REDUCED[factor], True))
    differences = [np.abs(a.astype(int) - b) for a, b in zip(full, reduced, strict=True)]
    return {
        "full": full_seconds / len(encoded),
        "reduced": reduced_seconds / len(encoded),
        "mean": float(np.mean([each.mean() for each in differences])),
        "largest": float(max(each.max() for each in differences)),
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def _rows(source, config: Any, args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of the tables."""
    crop = "x".join(map(str, config.data.image_size))
    yield f"{args.config}, crops of {crop}, {source.name}/{source.split}, {len(source)} images"
    yield "| workers | CPU ms per image | images/s per core | wall ms per image here |"
    yield "|---|---|---|---|"
    for workers in args.workers:
        config.data.workers = workers
        cpu, wall = measure_pipeline(source, config, args.batches)
        yield f"| {workers} | {1e3 * cpu:.2f} | {1 / cpu:.0f} | {1e3 * wall:.2f} |"
    stages = measure_stages(source, config, args.batches * config.data.batch_size)
    yield "CPU ms per image, one thread: " + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in stages.items())
    for factor in REDUCED if args.reduced else ():
        found = measure_reduced(source, args.batches * config.data.batch_size, factor, tuple(args.reduced))
        yield (
            f"decoded at 1/{factor} and resized to {'x'.join(map(str, args.reduced))}: {1e3 * found['reduced']:.2f} ms "
            f"instead of {1e3 * found['full']:.2f} ms; values differ by {found['mean']:.2f} in the mean and at most by "
            f"{found['largest']:.0f}"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config")
    parser.add_argument("--data", help="data set (default: the config's)")
    parser.add_argument("--data-dir", type=pathlib.Path, required=True)
    parser.add_argument("--split", help="default: the config's training split")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=20, help="batches to measure per row")
    parser.add_argument(
        "--reduced", type=int, nargs=2, metavar=("H", "W"), help="also decode at 1/2 and 1/4, and resize to this size"
    )
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    config = load_config(args.config)
    config.data.data_dir = str(args.data_dir)
    config.data.name = args.data or config.data.name
    source = data.open_split(config, args.split or config.data.train_split)
    for line in _rows(source, config, args):
        print(line, flush=True)


if __name__ == "__main__":
    main()
