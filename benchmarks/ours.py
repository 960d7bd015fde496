"""The worker of deeplab_jax, with one function per kind of task."""

import concurrent.futures
import functools
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import worker
from deeplab_jax import data, export, pretrained
from deeplab_jax.analysis import summary
from deeplab_jax.cli import malloc
from deeplab_jax.config import base_config, load_config
from deeplab_jax.data import prepare
from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import VOC
from deeplab_jax.models import build_model, random_variables
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.pretrained import PretrainedNetwork, bundle
from deeplab_jax.training.step import build_program

CLASSES = 21
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def main() -> None:
    """Runs the task on the command line."""
    task = worker.read_task()
    malloc.prepare_jax()
    KINDS[task["kind"]](task)


def network_config(task: dict) -> ConfigDict:
    """Returns the config of a task's network at its size and batch size."""
    size, batch = (64, min(2, task["batch"])) if task["quick"] else (task["size"], task["batch"])
    if task["network"] == "guide":
        config = load_config("kerascv_guide", size=size, batch=batch)
    else:
        config = _smp_config(task["network"].removeprefix("smp_"))
        config.data.image_size, config.data.batch_size = (size, size), batch
    config.mesh.data = 1
    config.update_from_flattened_dict(task.get("overrides", {}))
    return config


def _smp_config(encoder: str) -> ConfigDict:
    """Returns the config of segmentation_models.pytorch's DeepLabV3Plus, as our importer `smp` creates it."""
    config = base_config()
    config.model.update(
        backbone={"resnet50": "resnet50_v1", "mobilenet_v2": "mobilenet_v2_full"}[encoder],
        output_stride=16,
        spread_converted_units=True,
        atrous_rates=(12, 24, 36),
        atrous_rates_stride=16,
        aspp_separable=True,
        aspp_dropout=0.5,
        separable_norm=False,
        decoder="smp",
        align_corners=True,
    )
    config.optimizer.learning_rate = 0.007
    config.optimizer.schedule = "constant"
    return config


def random_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns noise images and random labels, uint8 as the pipeline delivers them."""
    rng = np.random.default_rng(0)
    shape = (config.data.batch_size, *config.data.image_size)
    return {
        "image": rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, shape, dtype=np.uint8),
    }


def count_multiply_adds(model, shape: Sequence[int]) -> int:
    """Counts the multiply-adds that the convolutions execute in the forward pass of a batch, without resizing."""
    batch, height, width, _ = shape
    rows = summary.summarize(model, height, width)
    return batch * sum(row.executed for row in rows if row.name != "resizing")


def count_parameters(params) -> int:
    """Counts the elements of all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def prepare_step(config: ConfigDict) -> tuple:
    """Returns the compiled program of `deeplab_jax.training.loop`, the first state, and the mesh."""
    mesh = mesh_lib.make_mesh(config.mesh)
    program = build_program(config, CLASSES, mesh, total_steps=2124, warmup_steps=0)
    return program, program.random_state(seed=0), mesh


def train_step(task: dict) -> None:
    """Measures steps from uint8 arrays on the host to the next state, confusion matrix included."""
    config = network_config(task)
    program, state, mesh = prepare_step(config)
    batch, parameters = random_batch(config), count_parameters(state.params)

    def work():
        nonlocal state
        state, report = program.step(state, sharding.to_global(batch, mesh))
        jax.block_until_ready((state, report))

    seconds = worker.repeat(work, warm_up=1, repetitions=task["repetitions"])
    worker.report(
        {"step": seconds},
        packages=PACKAGES,
        multiply_adds={"step": 3 * count_multiply_adds(program.model, batch["image"].shape)},
        facts={"parameters": parameters, "batch": list(batch["image"].shape)},
    )


def first_step(task: dict) -> None:
    """Measures from the start of the process to the end of the first step, with a cache in the pair's folder."""
    jax.config.update("jax_compilation_cache_dir", task["pair_folder"])
    config = network_config(task)
    program, state, mesh = prepare_step(config)
    jax.block_until_ready(program.step(state, sharding.to_global(random_batch(config), mesh)))
    worker.report({"first step": [worker.seconds_since_start()]}, packages=PACKAGES)


def _infer(task: dict, model, variables, images: np.ndarray, *, facts: dict) -> None:
    run = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
    variables = jax.device_put(variables)
    seconds = worker.repeat(
        lambda: run(variables, images).block_until_ready(), warm_up=3, repetitions=task["repetitions"]
    )
    name = task.get("name", "inference")
    worker.report(
        {name: seconds},
        packages=PACKAGES,
        multiply_adds={name: count_multiply_adds(model, images.shape)},
        facts={"parameters": count_parameters(variables["params"])} | facts,
    )


def infer(task: dict) -> None:
    """Measures logits of uint8 images, with random parameters."""
    config = network_config(task)
    options = {"platform": jax.default_backend(), "compute_dtype": config.train.compute_dtype}
    model = build_model(config.model, CLASSES, **options)
    images = random_batch(config)["image"]
    _infer(task, model, random_variables(model, seed=0), images, facts={"batch": list(images.shape)})


def infer_tflite(task: dict) -> None:
    """Measures logits of the network in a .tflite file, from uint8 images."""
    network = pretrained.import_file(pathlib.Path(task["tflite"]), "tflite")
    model = build_model(network.model, network.label_set.num_classes, platform=jax.default_backend())
    output = [1, *network.image_size, network.label_set.num_classes]
    images = np.random.default_rng(0).integers(0, 256, (*output[:3], 3), dtype=np.uint8)
    _infer(task, model, network.variables, images, facts={"output": output})


def _exportable(task: dict) -> PretrainedNetwork:
    """Returns the network of a task's config, with random parameters."""
    model = load_config(task["config"]).model
    variables = jax.tree.map(np.asarray, random_variables(build_model(model, CLASSES), seed=0))
    size = 64 if task["quick"] else task["size"]
    return PretrainedNetwork(model, variables, VOC, "squeeze", (size, size))


def write_export(task: dict) -> None:
    """Exports a network that turns one uint8 image of a fixed size into labels."""
    network = _exportable(task)
    options = export.ExportOptions(size=network.image_size, batch=1, argmax=True, uint8=True)
    export.export_network(network, task["format"], pathlib.Path(task["folder"]) / "exported", options)
    worker.report({}, packages=())


def labels(task: dict) -> None:
    """Measures labels of one uint8 image, as an exported network computes them."""
    network = _exportable(task)
    model = build_model(network.model, CLASSES, platform=jax.default_backend())
    variables = jax.device_put(network.variables)

    @jax.jit
    def run(variables, images):
        return jnp.argmax(model.apply(variables, images, train=False)[0], axis=-1).astype(jnp.uint8)

    images = np.random.default_rng(0).integers(0, 256, (1, *network.image_size, 3), dtype=np.uint8)
    seconds = worker.repeat(lambda: np.asarray(run(variables, images)), warm_up=3, repetitions=task["repetitions"])
    worker.report({"inference": seconds}, packages=PACKAGES, facts={"output": [1, *network.image_size]})


def confusion(task: dict) -> None:
    """Measures argmax and confusion matrix of full-size logits."""
    config = network_config(task)
    batch = random_batch(config)
    logits = jax.random.normal(jax.random.key(0), (*batch["label"].shape, CLASSES))
    labels = jax.device_put(batch["label"])

    @jax.jit
    def count(labels, logits):
        return metrics.confusion_matrix(labels, jnp.argmax(logits, axis=-1), num_classes=CLASSES)

    total = int(count(labels, logits).sum())
    if total != labels.size:
        raise SystemExit(f"{total} of {labels.size} pixels were counted")
    seconds = worker.repeat(
        lambda: count(labels, logits).block_until_ready(), warm_up=2, repetitions=4 * task["repetitions"]
    )
    worker.report({"confusion matrix": seconds}, packages=PACKAGES, memory=0, facts={"batch": [*labels.shape, 3]})


def input_pipeline(task: dict) -> None:
    """Measures the guide's training batches from prepared data: 20 batches per repetition, reported per batch."""
    config = load_config("kerascv_guide", size=task["size"], batch=task["batch"])
    config.data.workers = task["workers"]
    source_folder, data_dir = pathlib.Path(task["folder"]), pathlib.Path(task["folder"]) / "prepared"
    if not data_dir.is_dir():
        prepare.prepare("sbd", source=source_folder, data_dir=data_dir)
    source = data.open_source("sbd", "train", data_dir=data_dir)
    batches = data.train_batches(source, config.data, seed=0)
    count = 2 if task["quick"] else 20

    def work():
        for _ in range(count):
            next(batches)

    seconds = worker.repeat(work, warm_up=1, repetitions=task["repetitions"])
    # Other processes read the images, so the memory of this one says nothing.
    worker.report({"batch": [value / count for value in seconds]}, packages=("grain", "numpy"), memory=0)


def write_network(task: dict) -> None:
    """Writes the guide's network with random parameters, and an image for `predict`."""
    import cv2

    config = load_config("kerascv_guide")
    size = (64, 64) if task["quick"] else (512, 512)
    model = build_model(config.model, CLASSES)
    variables = jax.tree.map(np.asarray, random_variables(model, seed=0))
    folder = pathlib.Path(task["folder"])
    bundle.save(PretrainedNetwork(config.model, variables, VOC, "squeeze", size), folder / "network")
    extent = (64, 64) if task["quick"] else (375, 500)
    cv2.imwrite(str(folder / "image.jpg"), np.random.default_rng(0).integers(0, 256, (*extent, 3), dtype=np.uint8))
    worker.report({}, packages=())


def predict_command(task: dict) -> None:
    """Measures the whole command `deeplab-jax predict`, with programs compiled by an earlier run."""
    folder = pathlib.Path(task["pair_folder"])
    source = pathlib.Path(task["folder"])
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    outputs = (folder / f"masks{i}" for i in range(1 + task["repetitions"]))

    def work():
        command = [sys.executable, "-m", "deeplab_jax", "predict", str(source / "image.jpg")]
        command += ["--preset", str(source / "network"), "--output", str(next(outputs))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr.strip())

    seconds = worker.repeat(work, warm_up=1, repetitions=task["repetitions"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    worker.report({"command": seconds}, packages=PACKAGES, memory=peak)


def ceiling(task: dict) -> None:
    """Measures the limits of the processor: float32 matrix products (JAX or NumPy, the faster one), and copying.

    Copied bytes count twice, as read and as written. One thread per core copies.
    """
    size = 512 if task["quick"] else 4096
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    on_device = jax.device_put(left), jax.device_put(right)
    product = jax.jit(jnp.matmul)
    seconds = [
        min(worker.repeat(lambda: product(*on_device).block_until_ready(), warm_up=1, repetitions=3)),
        min(worker.repeat(lambda: left @ right, warm_up=1, repetitions=3)),
    ]
    words = 2**22 if task["quick"] else 2**27
    source, target = np.ones(words, np.float32), np.empty(words, np.float32)
    cores = os.cpu_count()
    parts = [slice(words * i // cores, words * (i + 1) // cores) for i in range(cores)]
    with concurrent.futures.ThreadPoolExecutor(cores) as threads:
        copy = functools.partial(threads.map, lambda part: np.copyto(target[part], source[part]), parts)
        copying = min(worker.repeat(lambda: list(copy()), warm_up=1, repetitions=5))
    facts = {
        "gflop_per_second": 2 * size**3 / min(seconds) / 1e9,
        "copied_gigabytes_per_second": 2 * source.nbytes / copying / 1e9,
    }
    worker.report({"product": [min(seconds)]}, packages=PACKAGES, facts=facts)


KINDS = {
    "step": train_step,
    "first_step": first_step,
    "infer": infer,
    "infer_tflite": infer_tflite,
    "write_export": write_export,
    "labels": labels,
    "confusion": confusion,
    "input": input_pipeline,
    "write_network": write_network,
    "predict_command": predict_command,
    "ceiling": ceiling,
}

if __name__ == "__main__":
    main()
