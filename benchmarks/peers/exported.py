"""The worker of an exported network in its own runtime: from a uint8 image to labels, at the exported size."""

import importlib
import pathlib

import numpy as np

from benchmarks import worker

THREADS = 2


def stablehlo(path: str):
    """Runs it with JAX; `jax.jit` caches the compiled program."""
    jax = importlib.import_module("jax")
    exported = importlib.import_module("jax.export").deserialize(bytearray(pathlib.Path(path).read_bytes()))
    run = jax.jit(exported.call)
    return lambda images: np.asarray(run(images)), ("jax", "jaxlib")


def savedmodel(path: str):
    """Runs it with TensorFlow."""
    tf = importlib.import_module("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    signature = tf.saved_model.load(path).signatures["serving_default"]
    signature.loaded_from = path  # keeps its resources alive
    return lambda images: signature(images=tf.constant(images))["labels"].numpy(), ("tensorflow-cpu",)


def tflite(path: str):
    """Runs it with LiteRT, which computes float32 operations with XNNPACK."""
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(path, num_threads=THREADS)
    runner = interpreter.get_signature_runner("serving_default")
    return lambda images: runner(images=images)["labels"], ("ai-edge-litert",)


def onnx(path: str):
    """Runs it with onnxruntime."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0], ("onnxruntime",)


FORMATS = {"stablehlo": stablehlo, "savedmodel": savedmodel, "tflite": tflite, "onnx": onnx}


def main() -> None:
    """Measures one call after the other."""
    task = worker.read_task()
    run, packages = FORMATS[task["format"]](str(pathlib.Path(task["folder"]) / "exported"))
    size = 64 if task["quick"] else task["size"]
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    output = run(images)
    seconds = worker.repeat(lambda: run(images), warm_up=3, repetitions=task["repetitions"])
    worker.report({"inference": seconds}, packages=packages, facts={"output": list(output.shape)})


if __name__ == "__main__":
    main()
