"""Pictures in, masks at the pictures' own size out."""

import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from deeplab_jax import checkpoint, data, pretrained, visualize
from deeplab_jax.errors import UserError
from deeplab_jax.inference import PicturePredictor
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.pretrained import PretrainedNetwork


class Predictor:
    """A trained network that labels pictures.

    Attributes:
      labels: the classes it knows.
    """

    def __init__(self, predict: PicturePredictor, labels: LabelSet):
        self._predict, self.labels = predict, labels

    @classmethod
    def from_workdir(cls, workdir: str | pathlib.Path, config: ConfigDict | None = None) -> "Predictor":
        """The newest checkpoint of a training run, with the run's config unless another one is given.

        Raises:
          UserError: the folder holds no run or no checkpoint.
        """
        workdir = pathlib.Path(workdir)
        if not workdir.is_dir():
            raise UserError(f"workdir {workdir} does not exist; `deeplab-jax train --workdir {workdir}` makes it")
        return cls.from_pretrained(
            pretrained.load(workdir), checkpoint.read_config(workdir) if config is None else config
        )

    @classmethod
    def from_preset(cls, name_or_path: str | pathlib.Path) -> "Predictor":
        """A preset by name, a folder that `deeplab-jax convert` wrote, or a workdir; fed as its authors did.

        Raises:
          UserError: it is none of these, cannot be read, or is a backbone without classes.
        """
        network = pretrained.load(name_or_path, console=Console(stderr=True))
        return cls.from_pretrained(network, pretrained.preset_config(network))

    @classmethod
    def from_pretrained(cls, network: PretrainedNetwork, config: ConfigDict) -> "Predictor":
        """A network with the config that says how it is built and fed.

        Raises:
          UserError: a backbone without classes, or a config of another network.
        """
        if network.labels is None:
            raise UserError(f"a {network.model.backbone} backbone alone has no classes to predict; train from it first")
        model = build_model(config.model, network.labels.num_classes, compute_dtype=config.train.compute_dtype)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        variables, _ = pretrained.merge(abstract_variables(model, device), network.variables)
        return cls(PicturePredictor(model, variables, config), network.labels)

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[UInt8[np.ndarray, "_ _"]]:
        """The class id of every pixel of each RGB picture, at its own size."""
        return [self._predict(image) for image in images]


def predict_files(
    predictor: Predictor, inputs: Iterable[pathlib.Path], output: pathlib.Path, *, console: Console | None = None
) -> list[pathlib.Path]:
    """Labels picture files: `<name>_mask.png`, a palette PNG, and `<name>_overlay.png` with a legend for each.

    Args:
      predictor: the network.
      inputs: pictures, and folders of pictures.
      output: the folder for the results; made if needed.
      console: shows progress on it.

    Returns:
      The files written, masks and overlays in turn.

    Raises:
      UserError: an input is missing or no picture, or a result exists already.
    """
    pictures = find_pictures(inputs)
    targets = [(output / f"{path.stem}_mask.png", output / f"{path.stem}_overlay.png") for path in pictures]
    for path in (path for pair in targets for path in pair):
        if path.exists():
            raise UserError(f"{path} exists; choose another --output or remove it")
    if len(set(targets)) < len(targets):
        twice = next(path for path, target in zip(pictures, targets, strict=True) if targets.count(target) > 1)
        raise UserError(f"two inputs are named {twice.stem}; predict them into different --output folders")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from None
    written = []
    pairs = list(zip(pictures, targets, strict=True))
    for path, (mask_path, overlay_path) in track(pairs, "predict", console=console, disable=console is None):
        image = data.read_picture(path)
        (label_map,) = predictor([image])
        visualize.save_palette_png(mask_path, label_map, predictor.labels)
        tinted = visualize.overlay(image, label_map, predictor.labels)
        visualize.save_image(overlay_path, visualize.add_legend(tinted, label_map, predictor.labels))
        written += [mask_path, overlay_path]
    return written


def find_pictures(inputs: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The picture files among the inputs and directly inside their folders, sorted within each folder.

    Raises:
      UserError: an input does not exist, or a folder has no picture.
    """
    pictures = []
    for path in inputs:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in data.PICTURE_SUFFIXES)
            if not found:
                raise UserError(f"folder {path} has no pictures ({', '.join(data.PICTURE_SUFFIXES)})")
            pictures += found
        elif path.is_file():
            pictures.append(path)
        else:
            raise UserError(f"{path} does not exist")
    return pictures
