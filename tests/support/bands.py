"""Scenes of five bands of 12 bits, as a camera on a satellite sees them: a field, a lake and roofs under haze."""

import pathlib

import numpy as np
from PIL import Image

CLASSES = ("soil", "crop", "water", "roof")
#: Reflectance of each class in blue, green, red, near infrared and short-wave infrared, of 4095. Soil and roofs differ
#: in the last band only, crop and water in the infrared ones, so a network that sees RGB alone confuses them.
_REFLECTANCE = np.array(
    [[700, 900, 1100, 1500, 1900], [450, 750, 500, 2900, 1300], [480, 760, 520, 250, 120], [700, 900, 1100, 1500, 700]]
)
_NOISE = 60


def scene(seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint16 (size, size, 5), and its label, uint8 (size, size)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    label = np.zeros((size, size), np.uint8)
    label[(rows + columns * rng.uniform(-0.4, 0.4)) > size * rng.uniform(0.4, 0.6)] = (
        1  # a field with a straight border
    )
    row, column = rng.uniform(0.2, 0.8, 2) * size
    label[(rows - row) ** 2 / 1.7 + (columns - column) ** 2 < (size * rng.uniform(0.15, 0.25)) ** 2] = 2  # a lake
    for _ in range(4):
        top, left = rng.integers(0, size - size // 6, 2)
        label[top : top + size // 7, left : left + size // 8] = 3
    haze = 1 + 0.15 * np.sin(2 * np.pi * (rows / size + rng.random()))[..., None]
    image = _REFLECTANCE[label] * haze + rng.normal(0, _NOISE, (size, size, 5))
    return np.clip(np.rint(image), 0, 4095).astype(np.uint16), label


def write_folder(root: pathlib.Path, count: int, *, size: int = 64, **options) -> pathlib.Path:
    """Writes a data set of the layout `folder`, with TIFFs that `tifffile.imwrite` writes with these options."""
    import tifffile

    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for seed in range(count):
        image, label = scene(seed, size)
        tifffile.imwrite(
            root / "images" / f"field_{seed}.tif", image, photometric="minisblack", planarconfig="contig", **options
        )
        Image.fromarray(label).save(root / "masks" / f"field_{seed}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
