"""Images in, masks at the images' own size out."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from deeplab_jax import config as config_lib
from deeplab_jax import data, pretrained
from deeplab_jax.errors import UserError, suggest
from deeplab_jax.inference import multi_scale, sliding_window, streaming_resize
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3Plus, abstract_variables, build_model
from deeplab_jax.pretrained import DEFAULT_PRESET, PretrainedNetwork
from deeplab_jax.workdir import layout


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of an image, at the image's own size.

    Attributes:
      labels: the class of every pixel.
      confidence: the probability of this class, 0 to 1.
      probabilities: of all classes, which add up to 1 (those that were not chosen have 0); None unless asked for.
    """

    label_map: UInt8[np.ndarray, "height width"]
    confidence: Float[np.ndarray, "height width"]
    probabilities: Float[np.ndarray, "height width classes"] | None = None


class Predictor:
    """A trained network that labels images of any size.

    It feeds images as the config's `eval.protocol` says: `whole` keeps an image's size and pads it (one that is
    larger than `eval.image_size` is scaled down to fit), `squeeze` and `guide` resize it to `data.image_size`. Labels
    come at the image's own size in any case: logits are resized (bilinear, half-pixel centers), never labels. They
    equal those of an evaluation where both pad alike: under `whole`, with `eval.image_size` set; without it an
    evaluation pads to its largest image and this to a bucket of sizes, and image pooling sees the padding.

    Programs are compiled for shapes, so sizes are rounded up to `deeplab_jax.data.bucket`. The network, which
    takes long to compile, is compiled once if its input's size is given (all protocols but `whole` without
    `eval.image_size`, or with `window`), else once for each pair of buckets of height and width; the resizing of its
    logits, which takes a fraction of a second, once for each pair of buckets and kind of result.

    Options:
      size: (height, width) of the network's input instead of the config's own; of the protocol `whole`, to what
        images are padded and scaled down.
      scales: factors at which the image is seen; the probabilities of all views are averaged (arXiv 1706.05587,
        section 4.1). See `deeplab_jax.inference.multi_scale.network_views` for sizes and padding.
      flip: every scale is seen mirrored as well.
      window: (height, width) of windows that slide over the image at its own size, for large ones; rounded up to
        multiples of the output stride. Each window is seen at all scales, and their probabilities are blended, see
        `deeplab_jax.inference.sliding_window`.
      classes: names or ids of the classes to choose among; probabilities are among these.

    Attributes:
      labels: the classes it knows.
    """

    def __init__(
        self,
        model: DeepLabV3Plus,
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
        """Takes variables on a device. See the class for the options.

        Raises:
          UserError: an option that makes no sense, or a class that does not exist.
        """
        config_lib.check_scales("scales", scales)
        if size is not None and window is not None:
            raise UserError("size and window exclude each other: windows slide over the image at its own size")
        for name, extents in (("size", size), ("window", window)):
            if extents is not None and (len(extents) != 2 or min(extents) < model.output_stride):
                raise UserError(
                    f"{name}={tuple(extents)} must be (height, width), each at least the output stride "
                    f"{model.output_stride}"
                )
        self.label_set = label_set
        self._model, self._variables = model, variables
        self._ids = _class_ids(classes, label_set)
        protocol = data.protocol_for(config)
        self._protocol = protocol if size is None else protocol.with_input_size(size)
        self._window = window and sliding_window.window_size(
            window, model.output_stride, align_corners=model.align_corners
        )

        self._scales, self._flip = tuple(scales), flip
        self._network, self._finish = jax.jit(self._see), jax.jit(self._resize_and_reduce, static_argnums=(3, 4, 5))

    @classmethod
    def from_workdir(cls, workdir: str | pathlib.Path, config: ConfigDict | None = None, **options: Any) -> "Predictor":
        """The newest checkpoint of a training run, with the run's config unless another one is given.

        Raises:
          UserError: the folder holds no run or no checkpoint, or an option makes no sense.
        """
        workdir = pathlib.Path(workdir)
        if not workdir.is_dir():
            raise UserError(f"workdir {workdir} does not exist; `deeplab-jax train --workdir {workdir}` makes it")
        network = pretrained.load(workdir)
        return cls.from_pretrained(network, layout.read_config(workdir) if config is None else config, **options)

    @classmethod
    def from_preset(cls, name_or_path: str | pathlib.Path = DEFAULT_PRESET, **options: Any) -> "Predictor":
        """A preset by name, a folder that `deeplab-jax convert` wrote, or a workdir; fed as its authors did.

        Raises:
          UserError: it is none of these, cannot be read, or is a backbone without classes, or an option makes no sense.
        """
        network = pretrained.load(name_or_path, console=Console(stderr=True))
        return cls.from_pretrained(network, pretrained.preset_config(network), **options)

    @classmethod
    def from_pretrained(cls, network: PretrainedNetwork, config: ConfigDict, **options: Any) -> "Predictor":
        """A network with the config that says how it is built and fed.

        Raises:
          UserError: a backbone without classes, a config of another network, or an option that makes no sense.
        """
        if network.label_set is None:
            raise UserError(f"a {network.model.backbone} backbone alone has no classes to predict; train from it first")
        device = jax.local_devices()[0]
        model = build_model(
            config.model,
            network.label_set.num_classes,
            platform=device.platform,
            compute_dtype=config.train.compute_dtype,
        )
        device = jax.sharding.SingleDeviceSharding(device)
        if config.model.to_dict() == network.model.to_dict():
            variables = jax.device_put(network.variables, device)  # its own: to trace shapes to compare with takes long
        else:
            variables, _ = pretrained.merge(abstract_variables(model, device), network.variables)
        return cls(model, variables, config, network.label_set, **options)

    def __call__(self, images: Iterable[data.ImageLike]) -> list[UInt8[np.ndarray, "_ _"]]:
        """The class id of every pixel of each image, at its own size.

        Args:
          images: paths, PIL images (both turned upright as their EXIF says), and (height, width, 3) uint8 RGB arrays,
            of any sizes. While one is computed the next is read.

        Raises:
          UserError: one of them is no image.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 0) == 3:
            raise UserError("give a list of images, for instance predictor([image])")
        masks, previous = [], None
        for position, image in enumerate(images):
            current = self._start(data.as_image(image, f"image {position}"), "labels")
            masks += [previous()[0]] if previous else []
            previous = current
        return masks + ([previous()[0]] if previous else [])

    def predict(self, image: data.ImageLike, probabilities: bool = False) -> Prediction:
        """Labels and confidence of one image, and the probabilities of all classes if asked for.

        Raises:
          UserError: it is no image.
        """
        kind = "probabilities" if probabilities else "confidence"
        return Prediction(*self._start(data.as_image(image, "the image"), kind)())

    def smoothed(self, alpha: int | float) -> Callable[[UInt8[np.ndarray, "_ _ 3"]], UInt8[np.ndarray, "_ _"]]:
        """A function that labels the frames of one video in turn, with logits averaged over time.

        At the classifier's resolution, `alpha` times the frame's logits plus `1 - alpha` times the average so far. Cuts
        are not looked for: the average of a scene before fades as `(1 - alpha) ** frames`.

        Raises:
          UserError: alpha is not above 0 and at most 1, or windows are used.
        """
        if not 0 < alpha <= 1:
            raise UserError(f"smoothing by {alpha} is not above 0 and at most 1; 1 does not smooth")
        if self._window is not None:
            raise UserError("windows cannot be smoothed over time; leave one of the two out")
        mix = jax.jit(lambda new, old: jax.tree.map(lambda x, y: alpha * x + (1 - alpha) * y, new, old))
        state = None

        def label(frame):
            nonlocal state
            logits, *how = self._run(frame)
            state = logits if state is None or alpha == 1 else mix(logits, state)
            return self._reduce(state, *how, "labels")()[0]

        return label

    def _start(self, image: np.ndarray, kind: str) -> Callable[[], tuple]:
        """Begins with an image, as far as devices work on their own. The result waits for them, and gives labels,
        confidence and probabilities, as far as the kind asks for them."""
        if self._window is not None:
            return lambda: self._slide(image, kind)
        logits, *how = self._run(image)
        return self._reduce(logits, *how, kind)

    def _run(self, image):
        """Logits of each view, the size of the network's input, which part of it is the image, the image's size."""
        fed, extent = self._protocol.fit(image)
        return self._network(self._variables, fed[None]), fed.shape[:2], extent, image.shape[:2]

    def _reduce(self, logits, fed_size, extent, size, kind) -> Callable[[], tuple]:
        canvas = tuple(data.bucket(side) for side in size)
        arrays = self._finish(logits, np.array(extent, np.float32), np.array(size), fed_size, canvas, kind)
        return lambda: self._with_ids(
            *(None if array is None else np.asarray(array)[0, : size[0], ..., : size[1]] for array in arrays)
        )

    def _see(self, variables, images):
        views = multi_scale.network_views(self._model, variables, images, scales=self._scales, flip=self._flip)
        chosen = slice(None) if len(self._ids) == self.label_set.num_classes else self._ids
        return [view.coarse[..., chosen] for view in views]

    def _resize_and_reduce(self, logits, extent, size, fed_size, canvas, kind):
        inputs = multi_scale.view_sizes(fed_size, self._scales, self._flip)
        extents = [(extent * np.divide(view, fed_size, dtype=np.float32))[None] for view in inputs]
        finish = functools.partial(_reduce_strips, kind=kind)
        align_corners = self._model.align_corners
        return streaming_resize.map_resized(
            logits, extents, size[None], canvas, finish, inputs=inputs, align_corners=align_corners
        )

    def _slide(self, image: np.ndarray, kind: str) -> tuple:
        side = np.array(self._window)

        def predict_window(pixels):
            logits = self._network(self._variables, pixels[None])
            _, _, probabilities = self._finish(
                logits, side.astype(np.float32), side, self._window, self._window, "probabilities"
            )
            return np.asarray(probabilities)[0]

        parts = []
        for strip in sliding_window.blended_strips(
            image,
            self._window,
            predict_window,
            output_stride=self._model.output_stride,
            pad_color=self._protocol.pad_color,
        ):
            labels = strip.argmax(axis=1)
            confidence = np.take_along_axis(strip, labels[:, None], axis=1)[:, 0]
            parts.append(self._with_ids(labels, confidence, strip if kind == "probabilities" else None))
        return tuple(None if part[0] is None else np.concatenate(part) for part in zip(*parts, strict=True))

    def _with_ids(self, labels, confidence, probabilities) -> tuple:
        """Copies, with ids instead of positions among the chosen classes, and all classes on the last axis."""
        if probabilities is not None:
            of_chosen = probabilities.swapaxes(1, 2)
            probabilities = np.zeros((*labels.shape, self.label_set.num_classes), of_chosen.dtype)
            probabilities[..., self._ids] = of_chosen
        return self._ids.astype(np.uint8)[labels], None if confidence is None else np.array(confidence), probabilities


def _reduce_strips(strips, kind):
    """Positions of the classes, their probability, all probabilities: as far as needed, of the views' logits."""
    if len(strips) == 1 and kind != "probabilities":
        labels, best = streaming_resize.arg_max(strips[0])
        if kind == "labels":
            return labels, None, None
        return labels, jnp.exp(best - jax.nn.logsumexp(strips[0], axis=1)), None
    probabilities = multi_scale.average_probabilities(strips, axis=1)
    # One view's labels are those of its logits, whatever is asked for: rounding may make probabilities equal.
    labels, confidence = streaming_resize.arg_max(probabilities)
    if len(strips) == 1:
        labels, _ = streaming_resize.arg_max(strips[0])
    return labels, confidence, probabilities if kind == "probabilities" else None


def _class_ids(classes: Sequence[str | int] | None, label_set: LabelSet) -> np.ndarray:
    """The ids to choose among, rising.

    Raises:
      UserError: none, or one that does not exist.
    """
    if classes is None:
        return np.arange(label_set.num_classes)
    ids = set()
    for given in [classes] if isinstance(classes, str) else classes:
        text = str(given)
        if text in label_set.class_names:
            ids.add(label_set.class_names.index(text))
        elif text.isdecimal() and int(text) < label_set.num_classes:
            ids.add(int(text))
        else:
            raise UserError(f"class {text!r} does not exist{suggest(text, label_set.class_names)}")
    if not ids:
        raise UserError(f"no classes to choose among; name some of {', '.join(label_set.class_names)}")
    return np.array(sorted(ids))
