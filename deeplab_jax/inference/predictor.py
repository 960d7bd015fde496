"""Semantic segmentation of images of any size."""

import copy
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained
from deeplab_jax.data.view_protocols import ViewProtocol, Windows
from deeplab_jax.errors import UserError
from deeplab_jax.inference import multi_scale, sliding_window, streaming_resize
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.inference.views import view_network
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import SegmentationNetwork, abstract_variables, build_model
from deeplab_jax.pretrained import DEFAULT_PRESET, PretrainedNetwork
from deeplab_jax.workdir import layout


class Predictor:
    """A network that labels images of any size.

    `config.eval.protocol` says how images are fed to the network: `whole` pads an image (and scales it down if it is
    larger than `eval.image_size`), `squeeze` and `guide` resize it to `data.image_size`, `keep_ratio` scales it, and
    `windows` slides windows over it; the last two see exactly what evaluation sees. Labels always have the size of
    the image: logits are resized (bilinear, half-pixel centers), labels never are. Labels equal those of evaluation if
    both pad to the same size. Under `whole` without `eval.image_size` they do not: evaluation pads to its largest
    image, prediction to a bucket of sizes, and image pooling sees the padding.

    Programs are compiled for fixed shapes, so image sizes are rounded up to `deeplab_jax.data.bucket`. The network,
    which takes long to compile, is compiled once if its input size is fixed (all protocols except `whole` without
    `eval.image_size`, and with `window`), otherwise once per pair of buckets of height and width. The resizing of its
    logits, which compiles in a fraction of a second, is compiled once per pair of buckets and kind of result.

    Options:
      size: (height, width) of the network input (default: the config's); under `whole`, the size that images are padded
        to and scaled down to fit; under `keep_ratio`, the size that they are scaled to fit into; under `windows`, that
        of the windows, which begin every two thirds of it.
      scales: factors at which the image is seen; the probabilities of all views are averaged (arXiv 1706.05587,
        section 4.1). See `multi_scale.network_views` for sizes and padding.
      flip: see every scale mirrored as well.
      window: (height, width) of windows that slide over the image at its own size, for large images; rounded up to
        multiples of the output stride. Each window is seen at all scales, and overlapping probabilities are blended,
        see `sliding_window`.
      classes: names or ids of the classes to choose from (default: all). Probabilities are renormalized over them.

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
    ):
        """Creates a predictor from variables on a device. See the class for the options.

        Raises:
          UserError: an option is invalid, or a class does not exist.
        """
        config_lib.check_scales("scales", scales)
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
        self._model, self._variables = model, variables
        self._ids = label_set.class_ids(classes)
        protocol = data.protocol_for(config)
        self._protocol = protocol if size is None else protocol.with_input_size(size)
        if window is None and isinstance(self._protocol, Windows) and self._protocol.is_blended:
            window = self._protocol.window
        self._window = window and sliding_window.window_size(
            window, model.output_stride, align_corners=model.align_corners
        )
        self._scales, self._flip = tuple(scales), flip
        self._network = jax.jit(self._apply_views)
        self._view_network = None
        if isinstance(self._protocol, ViewProtocol) and self._window is None:
            self._view_network = view_network(model, self._protocol, flip=flip, coarse=True)
        self._finish = jax.jit(self._resize_and_reduce, static_argnums=(3, 4, 5))

    def with_variables(self, variables: Any) -> "Predictor":
        """Returns a predictor with other variables of the same model; nothing is compiled again."""
        predictor = copy.copy(self)
        predictor._variables = variables
        return predictor

    def __repr__(self) -> str:
        options = {
            "size": self._protocol.input_size,
            "window": self._window,
            "scales": self._scales if self._scales != (1.0,) else None,
            "flip": self._flip,
        }
        shown = [f"{name}={value}" for name, value in options.items() if value]
        return f"Predictor({', '.join([self._model.backbone, f'{self.label_set.num_classes} classes', *shown])})"

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
        sharding = jax.sharding.SingleDeviceSharding(device)
        if config.model.to_dict() == network.model.to_dict():
            variables = jax.device_put(network.variables, sharding)  # no need to trace the model for a comparison
        else:
            variables, _ = pretrained.merge(abstract_variables(model, sharding), network.variables)
        return cls(model, variables, config, network.label_set, **options)

    def __call__(
        self,
        images: data.ImageLike | data.LazyTiff | Iterable[data.ImageLike | data.LazyTiff],
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Prediction | list[Prediction]:
        """Labels one image or many.

        While the device computes one image, the next one is read.

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
        wanted = (confidence, probabilities)
        if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) != 4:
            return self._dispatch(self._as_image(images, "the image"), *wanted)()
        predictions: list[Prediction] = []
        finish_previous = None
        for position, image in enumerate(images):
            finish = self._dispatch(self._as_image(image, f"image {position}"), *wanted)
            if finish_previous is not None:
                predictions.append(finish_previous())
            finish_previous = finish
        if finish_previous is not None:
            predictions.append(finish_previous())
        return predictions

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
        mix = jax.jit(lambda new, old: jax.tree.map(lambda x, y: smoothing * x + (1 - smoothing) * y, new, old))
        state = None

        def label_frame(frame):
            nonlocal state
            logits, *geometry = self._run(frame)
            state = logits if state is None else mix(logits, state)
            return self._reduce(state, *geometry, "labels")().label_map

        return label_frame

    def _dispatch(
        self, image: np.ndarray | data.LazyTiff, confidence: bool, probabilities: bool
    ) -> Callable[[], Prediction]:
        """Dispatches one image without blocking. Call the returned function to wait for the result."""
        kind = "probabilities" if probabilities else "confidence" if confidence else "labels"
        if self._window is not None:
            finish = functools.partial(self._slide, image, kind)
        else:
            logits, *geometry = self._run(image)
            finish = self._reduce(logits, *geometry, kind)
        if probabilities and not confidence:
            return lambda: dataclasses.replace(finish(), confidence=None)
        return finish

    def _run(self, image):
        """Returns the logits of each view, the sizes of the network's inputs, the image's extents in them, its size."""
        if self._view_network is not None:
            return self._run_views(image)
        fed, extent = self._protocol.fit(image)
        inputs = multi_scale.view_sizes(fed.shape[:2], self._scales, self._flip)
        extent = np.array(extent, np.float32)
        extents = [extent * np.divide(view, fed.shape[:2], dtype=np.float32) for view in inputs]
        return self._network(self._variables, fed[None]), tuple(inputs), extents, image.shape[:2]

    def _run_views(self, image):
        """Does what `_run` does, for a protocol that makes the views."""
        logits, inputs, extents = [], [], []
        for scale in self._scales:
            fed, extent = self._protocol.fit(image, scale)
            of_view = self._view_network(self._variables, jnp.asarray(fed[None]), jnp.array([extent], jnp.int32))
            logits += [one if len(self._ids) == one.shape[-1] else one[..., self._ids] for one in of_view]
            inputs += [fed.shape[:2]] * len(of_view)
            extents += [np.array(extent, np.float32)] * len(of_view)
        return logits, tuple(inputs), extents, image.shape[:2]

    def _reduce(self, logits, inputs, extents, size, kind) -> Callable[[], Prediction]:
        canvas = tuple(data.bucket(side) for side in size)
        arrays = self._finish(logits, extents, np.array(size), inputs, canvas, kind)
        return lambda: self._prediction(
            *(None if array is None else np.asarray(array)[0, : size[0], ..., : size[1]] for array in arrays)
        )

    def _apply_views(self, variables, images):
        views = multi_scale.network_views(self._model, variables, images, scales=self._scales, flip=self._flip)
        chosen = slice(None) if len(self._ids) == self.label_set.num_classes else self._ids
        return [view.coarse[..., chosen] for view in views]

    def _resize_and_reduce(self, logits, extents, size, inputs, canvas, kind):
        extents = [extent[None] for extent in extents]
        finish = functools.partial(_reduce_strips, kind=kind)
        align_corners = self._model.align_corners
        return streaming_resize.map_resized(
            logits, extents, size[None], canvas, finish, inputs=inputs, align_corners=align_corners
        )

    def _slide(self, image: np.ndarray | data.LazyTiff, kind: str) -> Prediction:
        side = np.array(self._window)
        inputs = tuple(multi_scale.view_sizes(self._window, self._scales, self._flip))
        extents = [np.array(view, np.float32) for view in inputs]

        def predict_window(pixels):
            data.check_image(pixels, "the image", self.pixels)
            logits = self._network(self._variables, pixels[None])
            _, _, probabilities = self._finish(logits, extents, side, inputs, self._window, "probabilities")
            return np.asarray(probabilities)[0]

        parts = []
        for strip in sliding_window.blended_strips(
            image,
            self._window,
            predict_window,
            output_stride=self._model.output_stride,
            pad_color=self._protocol.pad_color,
        ):
            labels, confidence = strip.argmax(axis=1), None
            if kind != "labels":
                confidence = np.take_along_axis(strip, labels[:, None], axis=1)[:, 0]
            parts.append(self._prediction(labels, confidence, strip if kind == "probabilities" else None))
        return Prediction(
            np.concatenate([part.label_map for part in parts]),
            self.label_set,
            None if kind == "labels" else np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.probabilities for part in parts]) if kind == "probabilities" else None,
        )

    def _prediction(self, labels, confidence, probabilities) -> Prediction:
        """Copies the arrays of `_reduce_strips`, with class ids for positions among the chosen classes."""
        if probabilities is not None:
            of_chosen = probabilities.swapaxes(1, 2)
            probabilities = np.zeros((*labels.shape, self.label_set.num_classes), of_chosen.dtype)
            probabilities[..., self._ids] = of_chosen
        confidence = None if confidence is None else np.array(confidence)
        return Prediction(self._ids.astype(np.uint8)[labels], self.label_set, confidence, probabilities)


def _reduce_strips(strips, kind):
    """Reduces the views' logits to the best class, its probability and all probabilities; None for unneeded results."""
    if len(strips) == 1 and kind != "probabilities":
        labels = jnp.argmax(strips[0], axis=1).astype(jnp.uint8)
        if kind == "labels":
            return labels, None, None
        return labels, jnp.exp(jnp.max(strips[0], axis=1) - jax.nn.logsumexp(strips[0], axis=1)), None
    probabilities = multi_scale.average_probabilities(strips, axis=1)
    # Labels of one view always come from its logits: probabilities of different logits can round to the same value.
    labels = jnp.argmax(strips[0] if len(strips) == 1 else probabilities, axis=1).astype(jnp.uint8)
    confidence = None if kind == "labels" else jnp.max(probabilities, axis=1)
    return labels, confidence, probabilities if kind == "probabilities" else None
