"""Makes the small .tflite files of the tests, and what LiteRT computes from them and from a real one.

Run from the checkout, with tensorflow-cpu, ai-edge-litert and pillow installed (made with 2.21.0, 2.3.0 and 13.0.0):

    PYTHONPATH=. python tests/goldens/make_tflite.py [SHARED]

writes tests/pretrained/data/{float,uint8}.tflite and tests/goldens/tflite.npz. SHARED is the folder of real images
and weights (the tests' `shared` fixture); with it, tests/goldens/tflite_real.npz is written too. The small networks are
research/deeplab's MobileNetV2 DeepLabv3 in plain TensorFlow operations with a twentieth of the features, weights from
`formula`, exported by TensorFlow's own converter.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from PIL import Image

from tests.goldens import formula

GOLDENS = pathlib.Path(__file__).parent
DATA = GOLDENS.parent / "pretrained" / "data"
SIZE, CLASSES, ASPP = 64, 5, 8  # an even size shows on which side SAME pads
GAIN = 1.15  # of the kernels, so that the image still shows in the last features
# Output features, stride and rate of the depthwise convolution, at output stride 16, width 1 / 20.
UNITS = (
    [(1, 1, 1), (2, 2, 1), (2, 1, 1), (2, 2, 1), (2, 1, 1), (2, 1, 1)]
    + [(3, 2, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1), (5, 1, 1), (5, 1, 1), (5, 1, 1)]
    + [(8, 1, 1), (8, 1, 2), (8, 1, 2), (16, 1, 2)]
)  # fmt: skip


def conv(x, name, features, size=1, stride=1, activation=None):
    """SAME convolution with a bias, as it is when BatchNorm has been folded in."""
    kernel = GAIN * formula.weight(f"{name}/weights", (size, size, x.shape[-1], features), is_norm=False)
    if name == "logits":
        kernel -= kernel.mean(axis=2, keepdims=True)  # features are positive: without it one class has every pixel
    x = tf.nn.conv2d(x, kernel, stride, "SAME") + formula.weight(f"{name}/biases", (features,), is_norm=False)
    return activation(x) if activation else x


def network(images):
    """Logits before the last resizing, and at the size of the images."""
    x = conv(images, "Conv", 2, size=3, stride=2, activation=tf.nn.relu6)
    for i, (features, stride, rate) in enumerate(UNITS):
        shortcut, inputs = x, x.shape[-1]
        if i > 0:
            x = conv(x, f"{i}/expand", 6 * inputs, activation=tf.nn.relu6)
        kernel = 1.4 * GAIN * formula.weight(f"{i}/weights", (3, 3, x.shape[-1], 1), is_norm=False, output_axis=2)
        x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME", dilations=[rate, rate])
        x = tf.nn.relu6(x + formula.weight(f"{i}/biases", (x.shape[-1],), is_norm=False))
        x = conv(x, f"{i}/project", features)
        if i > 0 and stride == 1 and features == inputs:
            x += shortcut
    height, width = x.shape[1:3]
    pooled = tf.nn.avg_pool2d(x, (height, width), 1, "VALID")
    pooled = conv(pooled, "image_pooling", ASPP, activation=tf.nn.relu)
    pooled = tf.compat.v1.image.resize_bilinear(pooled, (height, width), align_corners=True)
    x = tf.concat([pooled, conv(x, "aspp0", ASPP, activation=tf.nn.relu)], axis=3)
    x = conv(x, "concat_projection", ASPP, activation=tf.nn.relu)
    return tf.compat.v1.image.resize_bilinear(conv(x, "logits", CLASSES), (SIZE, SIZE), align_corners=True)


def convert(*, quantized: bool) -> bytes:
    """The small network as a file: float, or 8-bit throughout with the arg max inside."""
    signature = [tf.TensorSpec((1, SIZE, SIZE, 3), tf.float32)]

    def function(images):
        return tf.argmax(network(images), axis=3, output_type=tf.int32) if quantized else network(images)

    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [photos(f"calibration{i}").astype(np.float32) / 128 - 1] for i in range(20)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    return converter.convert()


def photos(name: str) -> np.ndarray:
    """A uint8 image of large patches, whose features differ more than those of noise."""
    patches = formula.images(name, (1, 9, 9, 3))
    return patches.repeat(8, axis=1).repeat(8, axis=2)[:, :SIZE, :SIZE]


def run(path: pathlib.Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """LiteRT's result and the outputs of the units, of ASPP and of the classifier."""
    interpreter = Interpreter(
        str(path),
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs)
    interpreter.invoke()
    steps = interpreter._get_ops_details()
    kinds = [step["op_name"] for step in steps]
    values = {"result": interpreter.get_tensor(interpreter.get_output_details()[0]["index"])}
    units = [i for i, kind in enumerate(kinds) if kind == "DEPTHWISE_CONV_2D"]
    for number, i in enumerate(units):
        last = i + 2 if kinds[i + 2] == "ADD" else i + 1
        values[f"unit{number}"] = interpreter.get_tensor(steps[last]["outputs"][0])
    joined = kinds.index("CONCATENATION")
    values["aspp"] = interpreter.get_tensor(steps[joined + 1]["outputs"][0])
    values["logits"] = interpreter.get_tensor(steps[joined + 2]["outputs"][0])
    return values


def thin(values: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    """About `most` numbers of each array: every so many rows, columns and channels, the first one included."""
    thinned = {}
    for name, value in values.items():
        steps = (1, -(-value.shape[1] // 5), -(-value.shape[2] // 5), max(1, value[:, :5, :5].size // most))
        thinned[name] = value[tuple(slice(None, None, step) for step in steps)]
        thinned[f"{name}/steps"] = np.array(steps)
    return thinned


def main():
    DATA.mkdir(exist_ok=True)
    arrays = {"picture": photos("picture")}
    (DATA / "float.tflite").write_bytes(convert(quantized=False))
    arrays |= thin(run(DATA / "float.tflite", arrays["picture"].astype(np.float32) / 127.5 - 1), most=100)
    (DATA / "uint8.tflite").write_bytes(convert(quantized=True))
    arrays["labels"] = run(DATA / "uint8.tflite", arrays["picture"])["result"].astype(np.uint8)
    np.savez_compressed(GOLDENS / "tflite.npz", **arrays)
    if len(sys.argv) > 1:
        np.savez_compressed(GOLDENS / "tflite_real.npz", **real(pathlib.Path(sys.argv[1])))


def real(shared: pathlib.Path) -> dict[str, np.ndarray]:
    """Google's 257x257 float network on twenty images of Pascal VOC's val split, the narrow 8-bit one on two."""
    voc = shared / "data" / "voc_subset"
    arrays = {"ids": np.array((voc / "ImageSets/Segmentation/val.txt").read_text().split()[:20]), "results": []}
    for id in arrays["ids"]:
        image = Image.open(voc / "JPEGImages" / f"{id}.jpg").convert("RGB").resize((257, 257), Image.BILINEAR)
        inputs = np.asarray(image, np.float32)[None] / 127.5 - 1
        values = run(shared / "weights" / "deeplabv3_257_mv_gpu.tflite", inputs)
        arrays["results"].append(values["result"][:, ::86, ::86])
        if len(arrays["results"]) == 1:
            del values["result"]
            arrays |= thin(values, most=60)
    arrays["results"] = np.concatenate(arrays["results"])
    canvas = np.full((2, 513, 513, 3), 128, np.uint8)
    for image, id in zip(canvas, arrays["ids"], strict=False):
        pixels = np.asarray(Image.open(voc / "JPEGImages" / f"{id}.jpg").convert("RGB"))
        image[: pixels.shape[0], : pixels.shape[1]] = pixels
    quantized = shared / "weights" / "deeplabv3_mnv2_dm05_pascal_quant.tflite"
    labels = [run(quantized, image[None])["result"][0, ::8, ::8] for image in canvas]
    return arrays | {"labels": np.stack(labels).astype(np.uint8)}


if __name__ == "__main__":
    main()
