"""Images, labels and archives of miniatures of public data sets, and what is prepared from them."""

import zipfile

import numpy as np
from PIL import Image

from deeplab_jax import data
from deeplab_jax.data.prepare import prepare
from tests.conftest import scene, write_jpeg

HEIGHT, WIDTH = 12, 20


def draw(values, seed=0):
    """A label of random rectangles with every one of `values`."""
    rng = np.random.default_rng(seed)
    values = np.asarray(values)
    label = values[rng.integers(0, len(values), (HEIGHT // 4, WIDTH // 4))].repeat(4, 0).repeat(4, 1)
    label.flat[: len(values)] = values
    return label


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def photo(path, seed=0):
    if path.suffix == ".jpg":
        write_jpeg(path, scene(seed, HEIGHT, WIDTH)[0])
    else:
        save(path, scene(seed, HEIGHT, WIDTH)[0])


def read(name, source, tmp_path, **options):
    """The prepared labels by split and id."""
    data_dir = tmp_path / f"data_{name}"
    prepare(name, source=source, data_dir=data_dir, **options)
    found = {}
    for split in data.split_names(name, data_dir=data_dir):
        opened = data.open_source(name, split, data_dir=data_dir)
        labels = [label for _, label in data.decode_examples(opened, range(len(opened)))]
        found[split] = dict(zip(opened.ids(), labels, strict=True))
    return found


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def class_of(label_set, name):
    return label_set.class_names.index(name)


def runs(mask):
    """Uncompressed run lengths, column by column."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return {"size": list(mask.shape), "counts": [int(count) for count in counts if count or count is counts[0]]}


def compressed(segmentation):
    """The same run lengths as COCO's text: differences from the number two places before, in groups of five bits."""
    counts, text = segmentation["counts"], ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            ends = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if ends else 32))
            if ends:
                break
    return segmentation | {"counts": text}
