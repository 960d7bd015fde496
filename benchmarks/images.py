"""Writes images and masks of SBD's size and detail in SBD's layout, for the input pipelines of both sides.

The images are noise at two scales, so that a JPEG is about as large, and takes about as long to decode, as one of VOC
(110 kB at 500x375).
"""

import pathlib

import cv2
import numpy as np
import scipy.io

from benchmarks import worker

HEIGHT, WIDTH, CLASSES = 375, 500, 21


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image (H, W, 3) and its label (H, W) with a few ellipses."""
    coarse = cv2.resize(
        rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    fine = cv2.GaussianBlur(rng.normal(0, 40, (HEIGHT, WIDTH, 3)), (0, 0), 0.8)
    image = np.clip(coarse + fine, 0, 255).astype(np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _ in range(3):
        center = (int(rng.integers(WIDTH)), int(rng.integers(HEIGHT)))
        axes = (int(rng.integers(20, 150)), int(rng.integers(20, 150)))
        cv2.ellipse(mask, center, axes, float(rng.integers(180)), 0, 360, int(rng.integers(1, CLASSES)), -1)
    return image, mask


def write(root: pathlib.Path, count: int) -> int:
    """Writes `benchmark_RELEASE/dataset` in `root`, with masks as PNG too. Returns the mean size of a JPEG in bytes."""
    folder = root / "benchmark_RELEASE" / "dataset"
    for name in ("img", "cls", "inst", "png"):
        (folder / name).mkdir(parents=True)
    rng, names, sizes = np.random.default_rng(0), [f"2008_{i:06d}" for i in range(count)], []
    for name in names:
        image, mask = scene(rng)
        path = folder / "img" / f"{name}.jpg"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        cv2.imwrite(str(folder / "png" / f"{name}.png"), mask)
        sizes.append(path.stat().st_size)
        for kind, struct in (("cls", "GTcls"), ("inst", "GTinst")):
            fields = {"Segmentation": mask, "Boundaries": np.zeros((CLASSES - 1, 1), object)}
            scipy.io.savemat(folder / kind / f"{name}.mat", {struct: fields}, do_compression=True)
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return sum(sizes) // count


def main() -> None:
    """Writes the task's images to the row's folder."""
    task = worker.read_task()
    size = write(pathlib.Path(task["folder"]), 16 if task["quick"] else task["count"])
    worker.report({}, packages=(), facts={"jpeg_bytes": size})


if __name__ == "__main__":
    main()
