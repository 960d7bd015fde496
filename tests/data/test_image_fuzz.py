"""Damaged images of every format and kind of pixel end in an image or in one line, within a time and a memory limit."""

import os
import pathlib
import subprocess
import sys

import pytest

_FUZZ = """
import io, pathlib, resource, signal, sys

import cv2
import numpy as np
from PIL import Image

from deeplab_jax.data import images
from deeplab_jax.errors import UserError

SECONDS, COUNT = 20, 150
rng = np.random.default_rng(int(sys.argv[1]))
path = pathlib.Path(sys.argv[2])
rgb = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
photo, seeds = Image.fromarray(rgb), []


def add(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    seeds.append(buffer.getvalue())


for format in images.IMAGE_FORMATS:
    add(photo, format)
for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    add(photo, "TIFF", compression=compression)
for format in ("TIFF", "GIF", "WEBP", "PNG", "MPO"):
    add(photo, format, save_all=True, append_images=[photo])
for mode, format in (("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG"), ("1", "TIFF")):
    add(photo.convert(mode), format)
for dtype, format in ((np.float32, "TIFF"), (np.uint16, "TIFF"), (np.uint16, "PNG"), (np.int32, "TIFF")):
    add(Image.fromarray((rgb[..., 0] / 255 * (1 if dtype == np.float32 else 60000)).astype(dtype)), format)
for suffix in (".png", ".tif"):
    seeds.append(cv2.imencode(suffix, rgb.astype(np.uint16) * 257)[1].tobytes())

resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
outcomes = {"read": 0, "rejected": 0}
for whole in seeds:
    for _ in range(COUNT):
        content = bytearray(whole)
        for position in rng.integers(0, min(len(content), rng.choice([60, 400, len(content)])), rng.integers(1, 6)):
            content[position] = rng.choice([0, 127, 128, 255, rng.integers(256)])
        if rng.random() < 0.2:
            content = content[: rng.integers(len(content))]
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process after this processor time
        try:
            images.read_image(path)
            outcomes["read"] += 1
        except UserError:
            outcomes["rejected"] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
print(outcomes["read"], outcomes["rejected"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_images_are_read_or_rejected(tmp_path, seed):
    path = tmp_path / "damaged.img"
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(seed), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{path} {done.stderr[-2000:]}"
    read, rejected = (int(count) for count in done.stdout.split())
    assert min(read, rejected) > 500  # the damage is neither harmless nor total
