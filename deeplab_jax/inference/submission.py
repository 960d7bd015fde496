"""Files for the servers that score the test splits of VOC 2012, Cityscapes and ADE20K."""

import collections
import dataclasses
import io
import logging
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax import visualization
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import ade20k, cityscapes
from deeplab_jax.errors import UserError
from deeplab_jax.files import write_atomically
from deeplab_jax.inference.files import Existing, choose_existing, find_images
from deeplab_jax.labels import ADE20K, CITYSCAPES, VOC, LabelSet

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """The files that a server expects.

    Attributes:
      benchmark: its name.
      label_set: its classes.
      image_name: pattern of the whole file name of an image, without its suffix. Its first group is the id.
      example: such a name.
      result: path of a result inside the folder to pack, with `{id}` in place of the image's id.
      num_images: number of images of the test split.
      label_map: ids of the results; None for palette PNGs whose indices are class ids.
      size: (height, width) of all images; None if they differ.
    """

    benchmark: str
    label_set: LabelSet
    image_name: str
    example: str
    result: str
    num_images: int
    label_map: LabelMap | None = None
    size: tuple[int, int] | None = None

    def check_classes(self, label_set: LabelSet) -> None:
        """Checks that a network predicts the benchmark's classes, in its order.

        Raises:
          UserError: it does not.
        """
        if label_set.class_names != self.label_set.class_names:
            raise UserError(
                f"a submission to {self.benchmark} needs its {self.label_set.num_classes} classes "
                f"({_shortened(self.label_set)}), but the network predicts {_shortened(label_set)}"
            )

    def paths(
        self, inputs: Iterable[pathlib.Path], output: pathlib.Path, *, existing: Existing = "refuse"
    ) -> dict[pathlib.Path, tuple[pathlib.Path, ...]]:
        """Returns the file to write for each image. A warning says if these are not as many as in the test split.

        Args:
          inputs: images and folders of images, with the file names of the benchmark.
          output: folder for the results.
          existing: what to do with images whose result exists. With "skip", they are not in the result.

        Raises:
          UserError: see `deeplab_jax.inference.files.find_images`; or a file has another name, two have the same name,
            or a result exists.
        """
        paths = {}
        for image in find_images(inputs, output):
            match = re.fullmatch(self.image_name, image.stem)
            if match is None:
                raise UserError(
                    f"image {image} does not have the name of an image of {self.benchmark}, such as {self.example}; "
                    "the server finds results by these names"
                )
            paths[image] = (output / self.result.format(id=match[1]),)
        counts = collections.Counter(paths.values())
        twice = [image for image, targets in paths.items() if counts[targets] > 1]
        if twice:
            raise UserError(f"images {twice[0]} and {twice[1]} have the same name; predict only one of them")
        if len(paths) != self.num_images:
            logger.warning(
                "%d images are predicted, but the test split of %s has %d", len(paths), self.benchmark, self.num_images
            )
        return choose_existing(paths, existing)

    def write(
        self,
        image: UInt8[np.ndarray, "height width 3"],
        label_map: UInt8[np.ndarray, "height width"],
        label_set: LabelSet,
        targets: tuple[pathlib.Path, ...],
    ) -> None:
        """Writes the result of one image.

        Raises:
          UserError: the image does not have the benchmark's size, or the file cannot be written.
        """
        if self.size is not None and image.shape[:2] != self.size:
            shown = "x".join(map(str, image.shape[:2]))
            raise UserError(
                f"an image of {self.benchmark} has {self.size[0]}x{self.size[1]} pixels (height x width), not {shown}"
            )
        (path,) = targets
        if self.label_map is None:
            visualization.save_palette_png(path, label_map, label_set)
            return
        buffer = io.BytesIO()
        Image.fromarray(self.label_map.to_source(label_map)).save(buffer, format="PNG")
        write_atomically(path, buffer.getvalue())


def _voc(competition: str) -> Submission:
    return Submission(
        benchmark="Pascal VOC 2012",
        label_set=VOC,
        image_name=r"(\d{4}_\d{6})",
        example="2008_000006.jpg",
        result=f"results/VOC2012/Segmentation/{competition}_test_cls/{{id}}.png",
        num_images=1456,
    )


#: Values of `deeplab-jax predict --submission`. VOC's competition 5 allows only VOC's own training data.
SUBMISSIONS: Mapping[str, Submission] = {
    "voc_comp5": _voc("comp5"),
    "voc_comp6": _voc("comp6"),
    "cityscapes": Submission(
        benchmark="Cityscapes",
        label_set=CITYSCAPES,
        image_name=r"([A-Za-z-]+_\d{6}_\d{6})_leftImg8bit",
        example="berlin_000000_000019_leftImg8bit.png",
        result="{id}_labelIds.png",
        num_images=1525,
        label_map=cityscapes.LABEL_MAP,
        size=(1024, 2048),
    ),
    "ade20k": Submission(
        benchmark="ADE20K",
        label_set=ADE20K,
        image_name=r"(ADE_\w+_\d{8})",
        example="ADE_test_00000001.jpg",
        result="{id}.png",
        num_images=3352,
        label_map=ade20k.LABEL_MAP,
    ),
}


def _shortened(label_set: LabelSet) -> str:
    return ", ".join(label_set.class_names[:4]) + (", ..." if label_set.num_classes > 4 else "")
