"""Semantic segmentation of images of any size."""

import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained
from deeplab_jax.data.view_protocols import Windows
from deeplab_jax.errors import UserError
from deeplab_jax.inference import sliding_window
from deeplab_jax.inference.computation import Computation, Kind, check_upsample, kind_of
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.runtime import XLA
from deeplab_jax.inference.runtime_choice import make_network
from deeplab_jax.inference.smoothing import smooth_labels
from deeplab_jax.inference.stream import Labeled, LabelStream, slide_ahead
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import SegmentationNetwork, abstract_variables, build_model, fold_batch_norm
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.pretrained import DEFAULT_PRESET, PretrainedNetwork
from deeplab_jax.workdir import layout

_T = TypeVar("_T")


class Predictor:
    """A network that labels images of any size.

    `config.eval.protocol` says how images are fed to the network: `whole` pads an image (and scales it down if it is
    larger than `eval.image_size`), `squeeze` and `guide` resize it to `data.image_size`, `keep_ratio` scales it, and
    `windows` slides windows over it; the last two see exactly what evaluation sees. Labels always have the size of the
    image: the logits are resized (bilinear, half-pixel centers) before their arg max. Labels equal those of evaluation
    if both pad to the same size. Under `whole` without `eval.image_size` they do not: evaluation pads to its largest
    image, prediction to a bucket of sizes, and image pooling sees the padding.

    Programs are compiled for fixed shapes, so image sizes are rounded up to `deeplab_jax.data.bucket`. The network,
    which takes long to compile, is compiled once if its input size is fixed (all protocols except `whole` without
    `eval.image_size`, and with `window`), otherwise once per pair of buckets of height and width. The resizing of its
    logits, which compiles in a fraction of a second, is compiled once per pair of buckets and kind of result.

    Options:
      size: (height, width) of the network input (default: the config's); under `whole`, the size that images are padded
        to and scaled down to fit; under `keep_ratio`, the size that they are scaled to fit into; under `windows`, that
        of the windows, which begin every two thirds of it.
      scales: factors at which the image is seen; the probabilities of all views are averaged, see `multi_scale`.
      flip: see every scale mirrored as well.
      window: (height, width) of windows that slide over the image at its own size, for large images; rounded up to
        multiples of the output stride. Each is seen at all scales, and overlaps are blended, see `sliding_window`.
      upsample: "logits", or "labels", which takes the arg max first and resizes labels to the nearest: faster, but less
        accurate. Excludes confidence, probabilities, `scales`, `flip` and `window`.
      classes: names or ids of the classes to choose from (default: all). Probabilities are renormalized over them.
      batch_size: number of images that each device computes together, if there are many of the same shape (default: 1
        on CPUs, up to 16 on accelerators, fewer for large images). Many images are split over all devices of this
        process, and so are the windows of a large image.
      runtime: what computes the network: "xla"; "litert" or "onnxruntime", which need the extra `runtimes` and compute
        on the CPU in float32, from a file per input size; or "auto". See `inference.runtime`.

    Attributes:
      label_set: names and colors of the network's classes.
      pixels: the format of the images that the network takes.
    """

    def __init__(
        self,
        model: SegmentationNetwork,
        variables: Any,
        config: ConfigDict,
        label_set: LabelSet,
        *,
        size: Sequence[int] | None = None,
        scales: Sequence[int | float] = (1.0,),
        flip: bool = False,
        window: Sequence[int] | None = None,
        classes: Sequence[str | int] | None = None,
        upsample: str = "logits",
        batch_size: int | None = None,
        runtime: str = XLA,
    ):
        """Creates a predictor from variables on a device. See the class for the options.

        Raises:
          UserError: an option is invalid, or a class does not exist.
        """
        config_lib.check_scales("scales", scales)
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        if size is not None and window is not None:
            raise UserError("size and window are both set; windows see the image at its own size, so set only one")
        for name, extents in (("size", size), ("window", window)):
            if extents is not None and (len(extents) != 2 or min(extents) < model.output_stride):
                raise UserError(
                    f"{name}={tuple(extents)} must be (height, width), each at least the output stride "
                    f"{model.output_stride}"
                )
        self.label_set = label_set
        self.pixels = data.pixels_of_model(model)
        self._display_channels = tuple(config.data.display_channels)
        self._ids = label_set.class_ids(classes)
        protocol = data.protocol_for(config)
        self._protocol = protocol if size is None else protocol.with_input_size(size)
        if window is None and isinstance(self._protocol, Windows) and self._protocol.is_blended:
            window = self._protocol.window
        self._window = window and sliding_window.window_size(
            window, model.output_stride, align_corners=model.align_corners
        )
        check_upsample(upsample, scales, flip, window)
        self._scales, self._flip, self._batch_size, self._runtime = tuple(scales), flip, batch_size, runtime
        self._backbone, self._output_stride = model.backbone, model.output_stride
        options = {"scales": self._scales, "flip": flip, "ids": self._ids, "upsample": upsample}
        self._compute = functools.partial(Computation, model, protocol=self._protocol, **options)
        self._variables, self._network = variables, make_network(runtime, model, variables)
        self._computation = self._compute(variables=variables, network=self._network)
        self._split_over = functools.cache(lambda mesh: self._compute(variables=None, mesh=mesh))  # shared by copies
        self._split_computation: Computation | None = None  # created when many images are predicted

    def with_variables(self, variables: Any) -> "Predictor":
        """Returns a predictor with other variables of the same model; nothing is compiled again."""
        predictor = copy.copy(self)
        predictor._variables = variables
        predictor._computation = self._computation.with_variables(variables)
        predictor._split_computation = None
        return predictor

    def __repr__(self) -> str:
        options = {
            "size": self._protocol.input_size,
            "window": self._window,
            "scales": self._scales if self._scales != (1.0,) else None,
            "flip": self._flip,
            "runtime": self._runtime if self._runtime != XLA else None,
        }
        shown = [f"{name}={value}" for name, value in options.items() if value]
        return f"Predictor({', '.join([self._backbone, f'{self.label_set.num_classes} classes', *shown])})"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | pathlib.Path = DEFAULT_PRESET,
        *,
        config: ConfigDict | None = None,
        checkpoint: str | None = None,
        **options: Any,
    ) -> "Predictor":
        """Loads a pretrained network for prediction.

        Args:
          name_or_path: preset name, saved network, workdir or `hf://owner/name`, see `pretrained.load`.
          config: how to feed images (default: as the network's authors do; for a workdir, the run's own config).
          checkpoint: checkpoint of a workdir: "newest", "best" or a step; default: the run's `checkpoint.use`.
          **options: see the class.

        Raises:
          UserError: nothing to load, a backbone without classes, a config of another network, or an invalid option.
        """
        network = pretrained.load(name_or_path, checkpoint=checkpoint)
        if config is None:
            path, _ = pretrained.split_checkpoint(name_or_path)
            is_workdir = pretrained.is_workdir(path)
            config = layout.read_config(path) if is_workdir else pretrained.preset_config(network)
        return cls.from_network(network, config, **options)

    @classmethod
    def from_network(cls, network: PretrainedNetwork, config: ConfigDict, **options: Any) -> "Predictor":
        """Creates a predictor from a loaded network. See `from_pretrained` for the arguments and errors."""
        if network.label_set is None:
            raise UserError(f"{network.model.backbone} is a backbone without classes; fine-tune it before predicting")
        device = jax.local_devices()[0]
        model = build_model(
            config.model,
            network.label_set.num_classes,
            platform=device.platform,
            compute_dtype=config.train.compute_dtype,
        )
        variables = network.variables
        if config.model.to_dict() != network.model.to_dict():  # otherwise, no need to trace the model for a comparison
            own = abstract_variables(model, jax.sharding.SingleDeviceSharding(device))
            variables, _ = pretrained.merge(own, variables)
        variables = jax.device_put(fold_batch_norm(model, variables), device)
        return cls(model, variables, config, network.label_set, **options)

    def __call__(
        self,
        images: data.ImageLike | data.LazyTiff | Iterable[data.ImageLike | data.LazyTiff],
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Prediction | list[Prediction]:
        """Labels one image or many.

        Args:
          images: an image, or an iterable of images of any sizes. An image is a path, a PIL image (both are rotated as
            their EXIF orientation says), or a (height, width, 3) uint8 RGB array. A 4-D array is a batch of images. A
            network with other channels or values takes paths, and arrays of these. With `window`, also the result of
            `read`.
          confidence: also return the probability of the predicted class.
          probabilities: also return the probabilities of all classes.

        Returns:
          A prediction for one image, a list of predictions for many.

        Raises:
          UserError: one of them is not an image.
        """
        if not isinstance(images, (str, os.PathLike, Image.Image)) and getattr(images, "ndim", 4) == 4:
            return list(self.map(images, confidence=confidence, probabilities=probabilities))
        image = self._as_image(images, "the image")
        if self._window is not None:
            prediction = self._slide(image, kind_of(confidence, probabilities))
        else:
            (arrays,) = self._computation.start([self._computation.fit(image)], kind_of(confidence, probabilities))()
            prediction = self._prediction(*arrays)
        return _requested(prediction, confidence, probabilities)

    def map(
        self,
        images: Iterable[data.ImageLike | data.LazyTiff],
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Iterator[Prediction]:
        """Labels many images and yields their predictions in order. Memory does not grow with their number.

        Threads read the next images while the devices compute, in batches of equal shapes, see `batch_size`. Labels
        equal those of single images, except where two classes are equally probable up to rounding, which may differ
        between batch sizes.

        Args:
          images: see `__call__`. Iterated a few batches ahead.
          confidence: also return the probability of the predicted class.
          probabilities: also return the probabilities of all classes.

        Raises:
          UserError: one of them is not an image, after the predictions of the images before it.
        """
        labeled = self.label_items(
            enumerate(images),
            lambda item: self._as_image(item[1], f"image {item[0]}"),
            kind=kind_of(confidence, probabilities),
        )
        for each in labeled:
            if each.error is not None:
                raise each.error
            yield _requested(each.prediction, confidence, probabilities)

    def label_items(
        self,
        items: Iterable[_T],
        read: Callable[[_T], np.ndarray | data.LazyTiff],
        *,
        kind: Kind = "labels",
    ) -> Iterator[Labeled[_T]]:
        """Labels the images that items stand for, in order, as `map` does. An image that cannot be read is an error.

        Args:
          items: what `read` takes.
          read: returns the image of an item, as `Predictor.read` does; called in other threads.
          kind: the results to compute.
        """
        if self._window is not None:
            return slide_ahead(items, read, functools.partial(self._slide, kind=kind))
        stream = LabelStream(
            self._on_all_devices(),
            self._prediction,
            kind=kind,
            num_classes=len(self._ids),
            batch_size=self._batch_size,
        )
        return stream(items, read)

    def read(
        self, path: pathlib.Path, *, max_pixels: int | None = None, value_range: data.ValueRange | None = None
    ) -> np.ndarray | data.LazyTiff:
        """Reads an image file as the network takes it. With `window`, large TIFFs are not read before they are sliced.

        Args:
          path: the file.
          max_pixels: see `deeplab_jax.data.read_image`.
          value_range: see `deeplab_jax.data.read_image`; only for networks that take 8-bit RGB.

        Raises:
          UserError: it is not an image, or not one that the network takes.
        """
        if self._window is not None and (large := data.open_lazily(path, max_pixels=max_pixels)):
            takes = ("uint8",) if self.pixels.is_rgb else ("uint8", "uint16", "float32")
            if large.shape[2] == self.pixels.channels and large.dtype.name in takes:
                return large
        if self.pixels.is_rgb:
            return data.read_image(path, max_pixels=max_pixels, value_range=value_range)
        if value_range is not None:
            low, high = self.pixels.value_range
            raise UserError(
                f"a range of values is set, but the network takes values from {low:g} to {high:g} as they are; "
                "remove it"
            )
        image = data.read_channels(path, self.pixels.channels, max_pixels=max_pixels)
        data.check_image(image, f"image {path}", self.pixels)
        return image

    def draw(self, image: np.ndarray) -> UInt8[np.ndarray, "_ _ 3"]:
        """Draws an image that the network takes as 8-bit RGB, see `data.display_channels`."""
        return data.to_rgb(image, self.pixels.value_range, self._display_channels)

    def _as_image(self, image: data.ImageLike | data.LazyTiff, name: str) -> np.ndarray | data.LazyTiff:
        if isinstance(image, data.LazyTiff):
            return image
        if self.pixels.is_rgb and not (self._window and isinstance(image, (str, os.PathLike))):
            return data.as_image(image, name)
        if isinstance(image, (str, os.PathLike)):
            return self.read(pathlib.Path(image))
        if not isinstance(image, np.ndarray):
            raise UserError(
                f"{name} is a {type(image).__name__}; the network takes {self.pixels.channels} channels: pass a path "
                "or an array"
            )
        image = data.as_stored(image, name)
        data.check_image(image, name, self.pixels)
        return image

    def start_video(
        self, *, smoothing: int | float = 1.0
    ) -> Callable[[UInt8[np.ndarray, "_ _ 3"]], UInt8[np.ndarray, "_ _"]]:
        """Returns a function that labels the frames of one video. Call it with each frame in turn.

        Args:
          smoothing: weight of the current frame, above 0 and at most 1. The classifier's logits are averaged over time:
            this times the logits of the frame plus `1 - smoothing` times the average so far. 1 does not smooth. Scene
            cuts are not detected: an earlier scene fades as `(1 - smoothing) ** frames`.

        Raises:
          UserError: `smoothing` is out of range, or below 1 in combination with windows; or the network does not take
            8-bit RGB.
        """
        if not self.pixels.is_rgb:
            raise UserError(f"videos have 8-bit RGB, but the network takes {self.pixels.channels} channels of its own")
        if not 0 < smoothing <= 1:
            raise UserError(f"smoothing {smoothing} must be above 0 and at most 1")
        if smoothing == 1:
            return lambda frame: self(frame).label_map
        if self._window is not None:
            raise UserError("smoothing does not work with windows; leave one of them out")
        label = smooth_labels(self._computation, smoothing)
        return lambda frame: self._prediction(*label(frame)).label_map

    def _on_all_devices(self) -> Computation:
        """The computation, split over the devices of this process."""
        if self._split_computation is None:
            devices = jax.local_devices(backend=self._computation.platform)
            self._split_computation = self._computation
            if len(devices) > 1 and self._network is None:  # other runtimes use all CPUs, however many devices they are
                mesh = mesh_lib.data_mesh(devices)
                variables = jax.device_put(self._variables, sharding.replicated(mesh))
                self._split_computation = self._split_over(mesh).with_variables(variables)
        return self._split_computation

    def _slide(self, image: np.ndarray | data.LazyTiff, kind: Kind) -> Prediction:
        strips = sliding_window.labeled_strips(
            self._on_all_devices(),
            image,
            self._window,
            kind=kind,
            num_classes=len(self._ids),
            batch_size=self._batch_size,
            output_stride=self._output_stride,
            pad_color=self._protocol.pad_color,
            check=lambda pixels: data.check_image(pixels, "the image", self.pixels),
        )
        parts = [self._prediction(*strip) for strip in strips]
        return Prediction(
            np.concatenate([part.label_map for part in parts]),
            self.label_set,
            None if kind == "labels" else np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.probabilities for part in parts]) if kind == "probabilities" else None,
        )

    def _prediction(self, labels, confidence, probabilities) -> Prediction:
        """Copies the arrays of `Computation`, with class ids for positions among the chosen classes."""
        if probabilities is not None:
            of_chosen = probabilities.swapaxes(1, 2)
            probabilities = np.zeros((*labels.shape, self.label_set.num_classes), of_chosen.dtype)
            probabilities[..., self._ids] = of_chosen
        confidence = None if confidence is None else np.array(confidence)
        return Prediction(self._ids.astype(np.uint8)[labels], self.label_set, confidence, probabilities)


def _requested(prediction: Prediction, confidence: bool, probabilities: bool) -> Prediction:
    """Drops the confidence, which comes along with the probabilities, unless it was requested."""
    return dataclasses.replace(prediction, confidence=None) if probabilities and not confidence else prediction
