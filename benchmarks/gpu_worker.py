"""The worker of `benchmarks.gpu` for deeplab_jax, with one function per kind of task."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from benchmarks import worker
from benchmarks.gpu_hlo import describe_convolutions
from benchmarks.ours import CLASSES, PACKAGES, count_multiply_adds, count_parameters, random_batch
from deeplab_jax import losses
from deeplab_jax.config import load_config
from deeplab_jax.models import build_model, random_variables
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training.step import build_program

CONFIGS = {
    "guide": ("kerascv_guide", {}),
    "resnet101": ("deeplabv3plus_resnet101_voc", {}),
    "segformer": ("segformer_voc", {"variant": "b0"}),
    "quickstart": ("quickstart", {}),  # of --toy
}


def main() -> None:
    """Runs the task on the command line."""
    task = worker.read_task()
    device = jax.devices()[0]
    if device.platform != "gpu" and not task["toy"]:
        raise SystemExit(f"JAX found no GPU, only {device.device_kind}; install jax[cuda12] or jax[cuda13]")
    KINDS[task["kind"]](task, device)


def network_config(name: str, *, size: int, batch: int, dtype: str) -> ConfigDict:
    """Returns a config for square images of this size."""
    config_name, arguments = CONFIGS[name]
    config = load_config(config_name, size=size, batch=batch, **arguments)
    config.train.compute_dtype = dtype
    config.mesh.data = 1
    return config


def step(task: dict, device: jax.Device) -> None:
    """Measures train steps on a batch of uint8 images that is on the device, confusion matrix included."""
    config = network_config(task["network"], size=task["size"], batch=task["batch"], dtype="bfloat16")
    mesh = mesh_lib.make_mesh(config.mesh, [device])
    program = build_program(config, CLASSES, mesh, total_steps=30_000)
    batch = sharding.to_global(random_batch(config), mesh)
    state = program.random_state(seed=0)
    compiled = program.lower_step().compile()
    facts = {"parameters": count_parameters(state.params), "batch": list(batch["image"].shape)}

    def steps():
        nonlocal state
        for _ in range(task["steps"]):
            state, report = compiled(state, batch, program.hyperparams)
        jax.block_until_ready((state, report))

    seconds = worker.repeat(steps, warm_up=1, repetitions=task["repetitions"])
    facts |= {"steps": task["steps"], "convolutions": describe_convolutions(compiled.as_text())}
    multiply_adds = task["steps"] * 3 * count_multiply_adds(program.model, batch["image"].shape)
    _report({"steps": seconds}, device, multiply_adds={"steps": multiply_adds}, facts=facts)


def infer(task: dict, device: jax.Device) -> None:
    """Measures labels of batches of uint8 images that are on the device, in bfloat16."""
    seconds, multiply_adds, repeated, parameters = {}, {}, {}, {}
    for network, batch in itertools.product(task["networks"], task["batches"]):
        config = network_config(network, size=task["size"], batch=batch, dtype="bfloat16")
        model = build_model(config.model, CLASSES, platform=device.platform, compute_dtype="bfloat16")
        variables = random_variables(model, seed=0)

        @jax.jit
        def predict(variables, images, model=model):
            return jnp.argmax(model.apply(variables, images, train=False)[0], axis=-1).astype(jnp.uint8)

        images = jax.device_put(random_batch(config)["image"], device)
        name = f"{network}, batch {batch}"
        count = repeated[name] = max(1, task["images"] // batch)

        def batches(predict=predict, variables=variables, images=images, count=count):
            for _ in range(count):
                labels = predict(variables, images)
            labels.block_until_ready()

        seconds[name] = worker.repeat(batches, warm_up=1, repetitions=task["repetitions"])
        multiply_adds[name] = count * count_multiply_adds(model, images.shape)
        parameters[network] = count_parameters(variables["params"])
    facts = {"batches": repeated, "parameters": parameters}
    _report(seconds, device, multiply_adds=multiply_adds, facts=facts)


def equality(task: dict, device: jax.Device) -> None:
    """Compares float32 logits and gradients with those of this machine's processor."""
    found, start = {}, time.monotonic()
    host = jax.devices("cpu")[0]
    for network in task["networks"]:
        if found and time.monotonic() - start > task["seconds"]:
            break
        config = network_config(network, size=task["size"], batch=2, dtype="float32")
        model = build_model(config.model, CLASSES)  # plain operations on both
        loss = losses.as_loss(losses.make_loss(config.loss, num_classes=CLASSES))
        with jax.default_device(host):
            variables = jax.tree.map(np.asarray, random_variables(model, seed=0))
        batch = random_batch(config)

        def compute(variables, batch, model=model, loss=loss):
            def mean_loss(params):
                logits, updates = model.apply(
                    variables | {"params": params},
                    batch["image"],
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.key(0)},
                )
                whole = loss.counts(batch["label"], step=0)
                counts = loss.report(logits[0], batch["label"], step=0, whole=whole)
                return counts["loss_sum"] / counts["loss_count"], updates

            gradient, _ = jax.grad(mean_loss, has_aux=True)(variables["params"])
            return model.apply(variables, batch["image"], train=False)[0], ravel_pytree(gradient)[0]

        run = jax.jit(compute)
        with jax.default_matmul_precision("highest"):
            here, there = (
                [np.asarray(value) for value in run(*jax.device_put((variables, batch), place))]
                for place in (host, device)
            )
        found[network] = {
            "logits": float(np.abs(here[0] - there[0]).max() / np.abs(here[0]).max()),
            "gradient": _angle(here[1].astype(np.float64), there[1].astype(np.float64)),
        }
    _report({}, device, facts={"differences": found})


def _angle(left: np.ndarray, right: np.ndarray) -> float:
    """Returns one minus the cosine of the angle between two vectors."""
    return float(1 - left @ right / np.sqrt((left @ left) * (right @ right)))


def _report(seconds: dict, device: jax.Device, *, facts: dict, multiply_adds: dict | None = None) -> None:
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use") or worker.peak_memory()
    worker.report(
        seconds,
        packages=PACKAGES,
        memory=memory,
        multiply_adds=multiply_adds,
        facts=facts | {"device": device.device_kind},
    )


KINDS = {"step": step, "infer": infer, "equality": equality}

if __name__ == "__main__":
    main()
