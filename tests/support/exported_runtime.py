"""Runs an exported network in its own runtime: `exported_runtime.py FORMAT PATH IMAGES.npy RESULT.npy`.

A separate program that cannot import deeplab_jax, so the file has to be self-contained.
"""

import os
import sys

import numpy as np

sys.modules["deeplab_jax"] = None  # importing it raises
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"


def stablehlo(path: str, images: np.ndarray) -> np.ndarray:
    from jax import export

    with open(path, "rb") as file:
        return np.asarray(export.deserialize(bytearray(file.read())).call(images))


def savedmodel(path: str, images: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    (result,) = tf.saved_model.load(path).signatures["serving_default"](images=tf.constant(images)).values()
    return result.numpy()


def tflite(path: str, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=2).get_signature_runner("serving_default")
    size = runner.get_input_details()["images"]["shape"][0]
    results = [runner(images=images[i : i + size]) for i in range(0, len(images), size)]
    return np.concatenate([array for result in results for array in result.values()])


def onnx(path: str, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"images": images})
    return result


if __name__ == "__main__":
    file_format, path, images, result = sys.argv[1:]
    np.save(result, globals()[file_format](path, np.load(images)))
    assert "flax" not in sys.modules
