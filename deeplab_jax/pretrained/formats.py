"""Registry of the weight formats that `deeplab-jax convert` and presets read."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable

from deeplab_jax.errors import UserError, suggest
from deeplab_jax.pretrained import bundle
from deeplab_jax.pretrained.network import PretrainedNetwork, check_finite, first_line


@dataclasses.dataclass(frozen=True)
class Format:
    """A weight format.

    Attributes:
      name: value of `deeplab-jax convert --from` and of a preset's `format`.
      description: the files it reads, for people.
      load: reads a network from a path. Raises `UserError` if the file is damaged or contains something else.
    """

    name: str
    description: str
    load: Callable[..., PretrainedNetwork]


# They record the origin of a network; the others come from elsewhere.
_OWN_FORMATS = ("deeplab_jax", "workdir")

#: Weight formats by name, see `register_format`.
FORMATS: dict[str, Format] = {}


def register_format(name: str, load: Callable[[pathlib.Path], PretrainedNetwork], *, description: str = "") -> None:
    """Adds a weight format.

    Args:
      name: new key of `FORMATS`.
      load: reads a network from a path.
      description: the files it reads, for people.

    Raises:
      ValueError: the name is taken.
    """
    if name in FORMATS:
        raise ValueError(f"format {name!r} is already registered")
    FORMATS[name] = Format(name, description, load)


def import_file(path: pathlib.Path, file_format: str, *, checkpoint: str | None = None) -> PretrainedNetwork:
    """Reads a network from a file of another framework, and checks that its weights are finite.

    Args:
      path: the file.
      file_format: a key of `FORMATS`.
      checkpoint: checkpoint of a workdir: "newest", "best" or a step; default: the run's `checkpoint.use`.

    Raises:
      UserError: the format or the file does not exist, the file contains something else, or a weight is NaN or
        infinite.
    """
    if file_format not in FORMATS:
        raise UserError(f"format {file_format!r} does not exist{suggest(file_format, FORMATS)}")
    if checkpoint is not None and file_format != "workdir":
        raise UserError(f"{path} is not the workdir of a training run, so it has no checkpoint {checkpoint!r}")
    options = {} if checkpoint is None else {"checkpoint": checkpoint}
    try:
        network = FORMATS[file_format].load(path, **options)
        check_finite(network.variables, path)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # An importer takes an array for a kernel, or a value of a config for a number, that is something else here.
        raise UserError(
            f"{path} does not have the layout of the format {file_format}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if file_format in _OWN_FORMATS or network.provenance.origin is not None:
        return network
    origin = dataclasses.replace(network.provenance, origin=f"file {path.name} in the format {file_format}")
    return dataclasses.replace(network, provenance=origin)


def _importer(module: str) -> Callable[[pathlib.Path], PretrainedNetwork]:
    """Returns a module's `load`, imported when it is first called: readers depend on h5py and others."""

    def load(path: pathlib.Path, **options: str) -> PretrainedNetwork:
        return importlib.import_module(f"deeplab_jax.pretrained.importers.{module}").load(path, **options)

    return load


register_format("kerascv", _importer("kerascv"), description="KerasCV DeepLabV3Plus and ResNetV2: .weights.h5, .keras")
register_format(
    "kerashub", _importer("kerashub"), description="KerasHub DeepLabV3+, ResNet, SegFormer, MiT: .weights.h5, .keras"
)
register_format("torchvision", _importer("torchvision"), description="ResNet, MobileNetV2/V3, DeepLabv3, LR-ASPP: .pth")
register_format(
    "smp", _importer("smp"), description="segmentation_models.pytorch DeepLabV3Plus, Segformer: .pth, .safetensors"
)
register_format("mmseg", _importer("mmseg"), description="MMSegmentation DeepLabv3, DeepLabv3+ and ResNetV1c: .pth")
register_format(
    "transformers", _importer("transformers"), description="Hugging Face SegFormer: folder, .safetensors, .bin"
)
register_format("nvlabs", _importer("nvlabs"), description="NVlabs SegFormer and MiT: .pth")
register_format("timm", _importer("timm"), description="timm ResNet, MobileNetV2 and Xception: .pth, .safetensors")
register_format("efficientnet-lite", _importer("efficientnet_lite"), description="efficientnet-lite-pytorch: .pth")
register_format("tflite", _importer("tflite"), description="Google's MobileNetV2 DeepLabv3: .tflite, float and 8-bit")
register_format("tf-deeplab", _importer("tf_deeplab"), description="research/deeplab: checkpoint prefix, .tar.gz")
register_format("workdir", _importer("workdir"), description="a checkpoint of a training run")
register_format("deeplab_jax", bundle.load, description="a folder that deeplab_jax wrote")
