"""SBD, the Semantic Boundaries Dataset: 11,355 images of Pascal VOC 2011 with VOC's classes (Hariharan et al., 2011).

The archive holds `benchmark_RELEASE/dataset/{img/*.jpg, cls/*.mat, inst/*.mat, train.txt, val.txt}`: 8,498 training
and 2,857 validation images. Labels are 0 to 20, without void. About 500 of the training images are in VOC 2012's
val: a network trained on SBD's train is not to be scored there. `train_noval.txt`, a list of 5,623 without them, is
published apart.
"""

import functools
import pathlib

import numpy as np
import scipy.io

from deeplab_jax.data.builder import Layout, Record, SegmentationBuilder
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC

URL = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"
MD5 = "82b4d87ceb2ed10f6038a1cba92111cb"
NOVAL_URL = "http://home.bharathh.info/pubs/codes/SBD/train_noval.txt"
NOVAL_MD5 = "79bff800c5f0b1ec6b21080a3c066722"


class Sbd(SegmentationBuilder):
    """TFDS builder of SBD."""


def wanted(name: str) -> bool:
    """Whether an entry of the archive is needed: images, class masks and lists; instance masks are not."""
    path = pathlib.PurePosixPath(name)
    return path.parent.name in ("img", "cls") or (path.parent.name == "dataset" and path.suffix == ".txt")


def read_layout(root: pathlib.Path) -> Layout:
    """The splits of an unpacked SBD: one for every list beside its `img` folder.

    Raises:
      UserError: the folder is not laid out like SBD.
    """
    folders = [path.parent for path in [root / "img", *sorted(root.glob("**/dataset/img"))] if path.is_dir()]
    if not folders:
        raise UserError(f"{root} is not laid out like SBD: there is no dataset/img folder in it")
    folder = folders[0]
    lists = sorted(folder.glob("*.txt"))
    if not lists:
        raise UserError(f"{folder} has no train.txt and val.txt, which list SBD's splits")
    return Layout(
        label_set=VOC,
        splits={path.stem: [_record(folder, example) for example in path.read_text().split()] for path in lists},
    )


def read_class_mask(path: pathlib.Path) -> np.ndarray:
    """`GTcls.Segmentation` of a mask file: integer ids (height, width).

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:  # given a path, scipy hides that there is no such file
            segmentation = scipy.io.loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        return np.asarray(segmentation).astype(np.int64, casting="safe")
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist") from None
    except Exception as error:  # scipy raises whatever the damaged bytes lead to
        raise UserError(f"mask {path} cannot be read as an SBD class mask: {error!r}") from None


def _record(folder: pathlib.Path, example: str) -> Record:
    return Record(
        id=example,
        image=folder / "img" / f"{example}.jpg",
        read_labels=functools.partial(read_class_mask, folder / "cls" / f"{example}.mat"),
    )
