"""Prepared data sets: TFDS builders that write ArrayRecord files, and the source that reads them. No TensorFlow."""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import Progress

from deeplab_jax.data import images
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet

_SKIP_DECODING = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}


@dataclasses.dataclass(frozen=True)
class Record:
    """One example of a raw data set: where its image lies and how its label map is read."""

    id: str
    image: pathlib.Path
    read_labels: Callable[[], np.ndarray]

    def encode(self, label_set: LabelSet) -> dict[str, Any]:
        """What is stored of the example, once it has been checked.

        Raises:
          UserError: as `read`.
        """
        image, label_map = self.read(label_set)
        return {"image": image, "label": images.encode_label_map(label_map), "id": self.id}

    def read(self, label_set: LabelSet) -> tuple[bytes, np.ndarray]:
        """The encoded image and the uint8 label map (height, width), checked.

        Raises:
          UserError: a file is missing or damaged, sizes differ, or a label is no class.
        """
        image, size = images.encode_image(self.image)
        label_map = self.read_labels()
        images.check_ids(label_map, label_set, f"of {self.image.name}")
        if label_map.shape != size:
            raise UserError(
                f"image {self.image} is {size[0]}x{size[1]} (height x width), "
                f"but its mask is {label_map.shape[0]}x{label_map.shape[1]}; they must agree"
            )
        return image, label_map.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A raw data set: its classes, and the records of each split in a fixed order."""

    label_set: LabelSet
    splits: dict[str, list[Record]]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a layout as ArrayRecord. A data set is a subclass, which TFDS names by its class in snake case."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: pathlib.Path, layout: Layout, progress: Progress):
        self._layout, self._progress = layout, progress
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        label_set = self._layout.label_set
        return tfds.core.DatasetInfo(
            builder=self,
            # Bytes that are stored as given: TFDS would need TensorFlow to encode and to decode images.
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "id": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                class_names=list(label_set.class_names), palette=[list(color) for color in label_set.palette]
            ),
            disable_shuffling=True,  # examples stay in the order of the split's list
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # sources are read, and fetched, before the builder is made
        return {split: self._generate_examples(split) for split in self._layout.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        records = self._layout.splits[split]
        for i, record in enumerate(self._progress.track(records, description=split)):
            example = record.encode(self._layout.label_set)
            yield i, example | {name: io.BytesIO(example[name]) for name in ("image", "label")}


class PreparedSource:
    """One split of a prepared data set: encoded examples by position (a grain random-access data source)."""

    def __init__(self, folder: pathlib.Path, split: str):
        self.folder, self.split, self.name = folder, split, folder.parent.name
        builder = tfds.builder_from_directory(os.fspath(folder))
        metadata = builder.info.metadata
        self.label_set = LabelSet(
            tuple(metadata["class_names"]), tuple(tuple(int(v) for v in color) for color in metadata["palette"])
        )
        self._records = builder.as_data_source(split=split, decoders=_SKIP_DECODING)
        self._largest_size = None

    @staticmethod
    def splits(folder: pathlib.Path) -> list[str]:
        """The splits that a prepared data set has."""
        return list(tfds.builder_from_directory(os.fspath(folder)).info.splits)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image` and `label` as encoded bytes, `id` as text.

        Raises:
          UserError: the file that holds the example is damaged or gone.
        """
        try:
            record, detail = self._records[index], "its file is cut short"
        except RuntimeError as error:  # ArrayRecord's only kind; its own checksums find flipped bytes
            record, detail = {"id": None}, str(error)
        if record["id"] is None:  # what reading beyond the end of a shortened file gives
            raise UserError(
                f"example {index} of {self.name}/{self.split} cannot be read: {detail}; "
                f"remove {self.folder} and prepare the data set again"
            )
        return {"image": record["image"], "label": record["label"], "id": record["id"].decode()}

    def __repr__(self) -> str:
        return f"PreparedSource({self.name}/{self.split}, {len(self)} examples)"

    def ids(self) -> list[str]:
        """Every example's id, in order."""
        return [self[i]["id"] for i in range(len(self))]

    def largest_size(self) -> tuple[int, int]:
        """Largest height and largest width over the split, from the labels' headers."""
        if self._largest_size is None:
            sizes = [images.encoded_size(self[i]["label"], self[i]["id"]) for i in range(len(self))]
            self._largest_size = tuple(int(extent) for extent in np.max(sizes, axis=0))
        return self._largest_size


def prepared_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Where a data set lies once it is prepared."""
    return data_dir / name / str(SegmentationBuilder.VERSION)


def write_dataset(
    builder_class: type[SegmentationBuilder], layout: Layout, data_dir: pathlib.Path, progress: Progress
) -> None:
    """Writes every split, or nothing: the folder gets its name when all of it is there.

    Raises:
      UserError: an example is wrong, or a split is empty.
    """
    for split, records in layout.splits.items():
        if not records:
            raise UserError(f"split {split} of {builder_class.name} is empty; check the list that names its images")
    folder = prepared_folder(builder_class.name, data_dir)
    for left_over in folder.parent.glob("incomplete.*"):  # of a preparation that was killed
        shutil.rmtree(left_over)
    builder = builder_class(data_dir=data_dir, layout=layout, progress=progress)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself with prints
            builder.download_and_prepare()
    except BaseException as error:
        cause = error  # TFDS has removed its temporary folder; what it raises may wrap the mistake it met
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    finally:
        with contextlib.suppress(OSError):  # TFDS makes these whether or not it downloads; not empty if we did
            (data_dir / "downloads" / "extracted").rmdir()
            (data_dir / "downloads").rmdir()
