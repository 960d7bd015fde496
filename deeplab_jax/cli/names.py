"""The names that `--help` lists. The modules that own them take seconds to import, so tests compare the two."""

import pathlib
from collections.abc import Callable

DATA_SETS = (
    "sbd", "voc2012_segmentation", "camvid", "cityscapes", "ade20k", "ade20k_151", "coco_stuff", "coco_stuff10k",
    "coco_panoptic", "coco_voc", "coco_voc_torchvision", "pascal_context", "pascal_context_59", "oxford_pet",
    "oxford_pet_binary", "oxford_pet_ignore", "folder", "synthetic",
)  # fmt: skip
PREPARABLE_DATA_SETS = tuple(name for name in DATA_SETS if name != "synthetic")
ANNOTATION_FORMATS = ("coco", "cvat", "roboflow", "yolo", "supervisely", "label-studio", "labelme")
ANNOTATION_EXPORT_FORMATS = ("coco", "cvat", "labelme")
IMPORT_FORMATS = (
    "kerascv", "kerashub", "torchvision", "smp", "mmseg", "transformers", "nvlabs", "timm", "efficientnet-lite",
    "tflite", "tf-deeplab", "workdir", "deeplab_jax",
)  # fmt: skip
EXPORT_FORMATS = ("stablehlo", "savedmodel", "tflite", "onnx")
QUANTIZATIONS = ("float16", "int8")
PAPERS = ("v3", "v3plus", "segformer", "mobilenetv3", "zoo", "torchvision", "keras")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
RUNTIMES = ("xla", "litert", "onnxruntime", "auto")
CODECS = ("mpeg4", "vp9")
UPSAMPLE = ("logits", "labels")
SUBMISSIONS = ("voc_comp5", "voc_comp6", "cityscapes", "ade20k")


def config_names() -> list[str]:
    """The built-in configs."""
    from deeplab_jax.config import config_folders

    return sorted({file.stem for folder in config_folders() for file in folder.glob("*.py")})


def segmentation_presets() -> list[str]:
    """The presets that predict classes, in the order of `deeplab-jax presets`."""
    return [preset["name"] for preset in _presets() if "classes" in preset]


def backbone_presets() -> list[str]:
    """The presets that are backbones without a classifier."""
    return [preset["name"] for preset in _presets() if "classes" not in preset]


def _presets() -> list[dict]:
    import tomllib

    path = pathlib.Path(__file__).parents[1] / "pretrained" / "presets.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["preset"]


#: What `--help` of a command can list.
LISTS: dict[str, Callable[[], list[str]]] = {
    "built-in configs": config_names,
    "presets": segmentation_presets,
    "backbone presets": backbone_presets,
    "data sets": lambda: list(DATA_SETS),
    "data sets to prepare": lambda: list(PREPARABLE_DATA_SETS),
    "formats": lambda: list(IMPORT_FORMATS),
    "papers": lambda: list(PAPERS),
}
