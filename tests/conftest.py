"""Set-up of the whole suite: the backend, run-time shape checks, and small data sets in the layouts of real ones."""

import os
import pathlib
import shutil
import signal

# Before anything imports jax: eight devices out of one CPU, and silent broadcasting of ranks is an error. Compiling is
# what the suite spends its time on, and unoptimized code is compiled twice as fast.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

# Tests replace parts of the package, which compiled programs of earlier tests must not hide.
os.environ["DEEPLAB_JAX_PROGRAM_CACHE"] = "off"

# Background jobs and `nohup` ignore these, and the processes that tests start would inherit it.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("deeplab_jax", "beartype.beartype")  # every jaxtyping signature is checked in every call

import cv2  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import scipy.io  # noqa: E402
from absl import flags  # noqa: E402
from PIL import Image  # noqa: E402

from deeplab_jax.cli import main  # noqa: E402
from deeplab_jax.config import load_config  # noqa: E402
from deeplab_jax.labels import VOC  # noqa: E402

if not flags.FLAGS.is_parsed():  # grain's worker processes read absl flags, which pytest does not parse
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def float64():
    """Computes in float64, so that what differs by rounding differs little."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real images and weights that large checks use; they are not part of the project."""
    path = pathlib.Path(os.environ.get("DEEPLAB_JAX_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"needs real data: no folder {path} (set DEEPLAB_JAX_SHARED)")
    return path


def scene(seed: int, height: int = 40, width: int = 56, num_classes: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random RGB image (JPEG keeps it nearly unchanged) and a label map with rectangles and void."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    label = np.zeros((height, width), np.uint8)
    for _ in range(3):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        label[top : top + 12, left : left + 16] = rng.integers(1, num_classes)
    label[:2] = 255
    return image, label


def write_jpeg(path: pathlib.Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, **options)


def write_index_png(path: pathlib.Path, label: np.ndarray) -> None:
    """A label map as VOC stores it: a palette PNG whose indices are the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    image.putpalette(VOC.color_table().tobytes())
    image.save(path)


def make_voc(root: pathlib.Path, splits: dict[str, list[str]] | None = None, **scene_options) -> pathlib.Path:
    """A VOC-layout folder: JPEGImages, SegmentationClass, ImageSets/Segmentation."""
    splits = splits or {"train": ["2007_000001", "2007_000002", "2007_000003"], "val": ["2008_000001", "2008_000002"]}
    for name, ids in splits.items():
        listing = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{id}\n" for id in ids))
        for id in ids:
            image, label = scene(_seed(id), **scene_options)
            write_jpeg(root / "JPEGImages" / f"{id}.jpg", image)
            write_index_png(root / "SegmentationClass" / f"{id}.png", label)
    return root


def make_sbd(root: pathlib.Path, splits: dict[str, list[str]] | None = None, **scene_options) -> pathlib.Path:
    """An SBD-layout folder: benchmark_RELEASE/dataset with img, cls, train.txt and val.txt; returns `root`."""
    splits = splits or {"train": ["2008_000002", "2008_000003", "2008_000007"], "val": ["2008_000008", "2008_000009"]}
    dataset = root / "benchmark_RELEASE" / "dataset"
    for name, ids in splits.items():
        dataset.mkdir(parents=True, exist_ok=True)
        (dataset / f"{name}.txt").write_text("".join(f"{id}\n" for id in ids))
        for id in ids:
            image, label = scene(_seed(id), **scene_options)
            write_jpeg(dataset / "img" / f"{id}.jpg", image)
            write_sbd_mat(dataset / "cls" / f"{id}.mat", label)
    return root


def write_sbd_mat(path: pathlib.Path, label: np.ndarray) -> None:
    """A cls file of SBD: the 1x1 struct GTcls with Segmentation, Boundaries and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.setdiff1d(np.unique(label), (0, 255)).astype(np.uint8)[:, None]
    fields = {"Boundaries": np.zeros((20, 1), object), "Segmentation": label, "CategoriesPresent": present}
    scipy.io.savemat(path, {"GTcls": fields}, do_compression=True)


def make_folder(root: pathlib.Path, count: int = 6, classes: str = "ground\ncrop\nweed\n", **options) -> pathlib.Path:
    """A person's own data: images/, masks/ of ids, classes.txt."""
    for i in range(count):
        image, label = scene(100 + i, num_classes=3, **options)
        write_jpeg(root / "images" / f"field_{i:03d}.jpg", image)
        path = root / "masks" / f"field_{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(path)
    (root / "classes.txt").write_text(classes)
    return root


def make_camvid(root: pathlib.Path) -> pathlib.Path:
    """CamVid in SegNet's split: {split}/*.jpg, {split}annot/*.png with ids 0-11, {split}.txt."""
    for seed, split in enumerate(("train", "val", "test")):
        ids = [f"{seed:04d}TP_{i:06d}" for i in range(2)]
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("\n".join(ids))
        for id in ids:
            image, label = scene(_seed(id), num_classes=11)
            write_jpeg(root / split / f"{id}.jpg", image)
            write_index_png(root / f"{split}annot" / f"{id}.png", np.where(label == 255, 11, label).astype(np.uint8))
    return root


def _seed(text: str) -> int:
    return sum((position + 1) * ord(character) for position, character in enumerate(text))


@pytest.fixture
def voc_folder(tmp_path):
    """A VOC-layout folder with splits train (3 images) and val (2)."""
    return make_voc(tmp_path / "voc")


@pytest.fixture
def sbd_folder(tmp_path):
    """The parent of benchmark_RELEASE/dataset with splits train (3 images) and val (2)."""
    return make_sbd(tmp_path / "sbd")


@pytest.fixture
def own_folder(tmp_path):
    """Six images in images/, their masks in masks/, three names in classes.txt."""
    return make_folder(tmp_path / "own")


@pytest.fixture
def camvid_folder(tmp_path):
    """CamVid with two images in each of train, val and test."""
    return make_camvid(tmp_path / "camvid")


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Programs compiled once a session: compiling is most of what a tiny run costs. Subprocesses use it too."""
    folder = tmp_path_factory.mktemp("compiled")
    options = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)


# The quickstart, as small as it gets; on the command line and in code. One device: eight make compiling slower.
TINY_ARGUMENTS = "quickstart:steps=2,size=32,batch=8"
TINY_VALUES = {
    "model.output_stride": 16,
    "model.atrous_rates": (2,),
    "model.atrous_rates_stride": 16,
    "model.aspp_channels": 8,
    "model.aspp_separable": False,
    "model.decoder": "kerascv",
    "model.decoder_channels": 8,
    "model.low_level_channels": 8,
    "data.num_examples": 16,
    "optimizer.learning_rate": 0.02,
    "mesh.data": 1,
    "log.tensorboard": False,
}


@pytest.fixture(scope="session")
def make_tiny_config():
    """A function that returns a config whose network is small and trains for two steps on images of 32x32 pixels."""

    def make():
        config = load_config("quickstart", steps=2, size=32, batch=8)
        config.update_from_flattened_dict(TINY_VALUES)
        return config

    return make


@pytest.fixture
def tiny_config(make_tiny_config):
    """A config whose network is small and trains for two steps on drawn scenes of 32x32 pixels."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """`tiny_config` on the command line."""
    overrides = [f"--config.{field}={value}" for field, value in TINY_VALUES.items()]
    return ["--config", TINY_ARGUMENTS, *overrides]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, compilation_cache, tiny_arguments) -> pathlib.Path:
    """The workdir of a run of `tiny_config`, trained by the command. Tests copy it or leave it as it is."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DEEPLAB_JAX_OPS", raising=False)  # some packages of tests set it
        with pytest.raises(SystemExit) as done:
            main.main(["train", "--workdir", str(workdir), *tiny_arguments])
    assert done.value.code == 0
    return workdir


@pytest.fixture
def workdir(trained, tmp_path) -> pathlib.Path:
    """A copy of the trained workdir that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")
