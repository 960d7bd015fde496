"""The worker of a minimal input pipeline: cv2 decodes and resizes, in threads."""

import concurrent.futures
import itertools
import pathlib

import cv2
import numpy as np

from benchmarks import worker


def main() -> None:
    """Measures batches of images (bilinear) and masks (nearest, from PNG), neither shuffled nor flipped."""
    task = worker.read_task()
    cv2.setNumThreads(1)
    folder, size = pathlib.Path(task["folder"]) / "benchmark_RELEASE" / "dataset", (task["size"], task["size"])
    names = (folder / "train.txt").read_text().split()

    def read(name):
        image = cv2.cvtColor(cv2.imread(str(folder / "img" / f"{name}.jpg")), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(folder / "png" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        return (
            cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
            cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT),
        )

    count, endless = (2 if task["quick"] else 20), itertools.cycle(names)

    with concurrent.futures.ThreadPoolExecutor(task["threads"]) as threads:

        def window():
            examples = threads.map(read, list(itertools.islice(endless, count * task["batch"])))
            for _ in range(count):
                images, masks = zip(*itertools.islice(examples, task["batch"]), strict=True)
                np.stack(images), np.stack(masks)

        seconds = worker.repeat(window, warm_up=1, repetitions=task["repetitions"])
    worker.report({"batch": [time / count for time in seconds]}, packages=("opencv-python-headless",), memory=0)


if __name__ == "__main__":
    main()
