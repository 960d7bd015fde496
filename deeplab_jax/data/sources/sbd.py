"""SBD, the Semantic Boundaries Dataset: 11,355 images of Pascal VOC 2011 with VOC's classes (Hariharan et al., 2011).

The archive contains `benchmark_RELEASE/dataset/{img/*.jpg, cls/*.mat, inst/*.mat, train.txt, val.txt}`: 8,498 training
and 2,857 validation images. Labels are 0 to 20, without ignored pixels. About 500 of the training images are in VOC
2012's val, so do not score a network there that was trained on SBD's train. `train_noval.txt`, a list of 5,623 images
without them, is published separately.
"""

import functools
import pathlib

import numpy as np

from deeplab_jax.data.dataset import Dataset, Download, RawDataset, RawExample
from deeplab_jax.data.formats.text_file import read_names
from deeplab_jax.errors import UserError
from deeplab_jax.labels import VOC

ARCHIVE = Download(
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
)
TRAIN_NOVAL = Download(
    url="http://home.bharathh.info/pubs/codes/SBD/train_noval.txt", digest="md5:79bff800c5f0b1ec6b21080a3c066722"
)


def is_needed(name: str) -> bool:
    """Whether to unpack a file of the archive: images, class masks and lists, but no instance masks."""
    path = pathlib.PurePosixPath(name)
    return path.parent.name in ("img", "cls") or (path.parent.name == "dataset" and path.suffix == ".txt")


def read_raw(root: pathlib.Path) -> RawDataset:
    """The splits of an unpacked SBD: one per list next to its `img` folder.

    Raises:
      UserError: the folder does not have SBD's layout.
    """
    folders = [path.parent for path in [root / "img", *sorted(root.glob("**/dataset/img"))] if path.is_dir()]
    if not folders:
        raise UserError(f"{root} does not have SBD's layout: it has no dataset/img folder")
    folder = folders[0]
    lists = sorted(folder.glob("*.txt"))
    if not lists:
        raise UserError(f"{folder} has no lists of its splits, train.txt and val.txt")
    return RawDataset(
        label_set=VOC,
        splits={path.stem: [_example(folder, name) for name in read_names(path)] for path in lists},
    )


def read_class_mask(path: pathlib.Path) -> np.ndarray:
    """Reads `GTcls.Segmentation` of a .mat file: an integer label of shape (height, width).

    Raises:
      UserError: the file is missing, damaged, or not a class mask of SBD.
    """
    import scipy.io  # half a second, which only SBD needs

    try:
        with path.open("rb") as file:  # given a path, scipy hides that the file does not exist
            segmentation = scipy.io.loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        return np.asarray(segmentation).astype(np.int64, casting="safe")
    except FileNotFoundError:
        raise UserError(f"mask {path} does not exist") from None
    except Exception as error:  # scipy raises all kinds of exceptions for damaged bytes
        raise UserError(f"mask {path} cannot be read as an SBD class mask: {error!r}") from None


def _example(folder: pathlib.Path, name: str) -> RawExample:
    return RawExample(
        id=name,
        image=folder / "img" / f"{name}.jpg",
        read_label=functools.partial(read_class_mask, folder / "cls" / f"{name}.mat"),
        label_files=(folder / "cls" / f"{name}.mat",),
    )


DATASET = Dataset(
    name="sbd",
    read_raw=read_raw,
    archives=(ARCHIVE,),
    is_needed=is_needed,
    extra_lists=(TRAIN_NOVAL,),
    sizes={"train": 8498, "val": 2857, "train_noval": 5623},
)
