"""Makes what research/deeplab's MobileNetV3 with LR-ASPP computes.

Run from the checkout, in the environment of `make_tf_deeplab.py`:

    PYTHONPATH=. python tests/goldens/make_tf_mobilenet_v3.py

writes tests/goldens/tf_mobilenet_v3.npz. The networks are put together here from slim's layers, after
`research/deeplab/model.py`, `core/{feature_extractor,utils}.py` and
`research/slim/nets/mobilenet/{mobilenet,mobilenet_v3,conv_blocks}.py` of tensorflow/models.
"""

import pathlib

import numpy as np
import tensorflow.compat.v1 as tf
import tf_slim as slim

from tests.goldens import formula
from tests.goldens.make_tf_deeplab import norm, thin, value

CLASSES = 19
# Expanded channels, kernel, features, stride, squeeze-and-excitation, activation of each unit.
LARGE = [
    (16, 3, 16, 1, 0, "re"), (64, 3, 24, 2, 0, "re"), (72, 3, 24, 1, 0, "re"),
    (72, 5, 40, 2, 1, "re"), (120, 5, 40, 1, 1, "re"), (120, 5, 40, 1, 1, "re"),
    (240, 3, 80, 2, 0, "hs"), (200, 3, 80, 1, 0, "hs"), (184, 3, 80, 1, 0, "hs"), (184, 3, 80, 1, 0, "hs"),
    (480, 3, 112, 1, 1, "hs"), (672, 3, 112, 1, 1, "hs"),
    (336, 5, 80, 2, 1, "hs"), (480, 5, 80, 1, 1, "hs"), (480, 5, 80, 1, 1, "hs"),
]  # fmt: skip
SMALL = [
    (16, 3, 16, 2, 1, "re"), (72, 3, 24, 2, 0, "re"), (88, 3, 24, 1, 0, "re"),
    (96, 5, 40, 2, 1, "hs"), (240, 5, 40, 1, 1, "hs"), (240, 5, 40, 1, 1, "hs"),
    (120, 5, 48, 1, 1, "hs"), (144, 5, 48, 1, 1, "hs"),
    (144, 5, 48, 2, 1, "hs"), (288, 5, 48, 1, 1, "hs"), (288, 5, 48, 1, 1, "hs"),
]  # fmt: skip


def hard_sigmoid(x):
    return tf.nn.relu6(x + 3) * 0.16667


def hard_swish(x):
    return x * tf.nn.relu6(x + np.float32(3)) * np.float32(1.0 / 6.0)


def trunk(x, units, final, output_stride, skip, endpoints):
    """Features, with the depthwise output of unit `skip` as endpoint."""
    activations = {"re": tf.nn.relu, "hs": hard_swish}
    plain = {"normalizer_fn": None}
    layers = [slim.conv2d, slim.separable_conv2d]
    with tf.variable_scope("MobilenetV3"), slim.arg_scope(layers, padding="SAME", **norm()):
        x = slim.conv2d(x, 16, 3, stride=2, activation_fn=hard_swish)
        current, rate = 2, 1
        for i, (expanded, kernel, features, stride, squeeze, name) in enumerate(units):
            reached = current == output_stride
            options = {"stride": 1, "rate": rate} if reached else {"stride": stride, "rate": 1}
            current, rate = (current, rate * stride) if reached else (current * stride, 1)
            activation = activations[name]
            with tf.variable_scope(f"expanded_conv_{i}" if i else "expanded_conv"):
                shortcut = x
                if expanded > x.shape[-1]:
                    x = slim.conv2d(x, expanded, 1, activation_fn=activation, scope="expand")
                x = slim.separable_conv2d(
                    x, None, kernel, depth_multiplier=1, activation_fn=activation, scope="depthwise", **options
                )
                if i == skip:
                    endpoints["mid_level_features"] = x
                if squeeze:
                    with tf.variable_scope("squeeze_excite"):
                        gate = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
                        wish = max(8, int(expanded / 4 + 4) // 8 * 8)
                        gate = slim.conv2d(gate, wish + 8 * (wish < 0.9 * expanded / 4), 1, **plain)
                        x = x * slim.conv2d(gate, expanded, 1, activation_fn=hard_sigmoid, **plain)
                x = slim.conv2d(x, features, 1, activation_fn=None, scope="project")
                if options["stride"] == 1 and shortcut.shape[-1] == features:
                    x = x + shortcut
            endpoints[f"unit{i}"] = x
        return slim.conv2d(x, final, 1, activation_fn=hard_swish)


def lraspp(x, size, output_stride, window, stride, endpoints):
    """Logits at the images' size."""

    def resize(x, size):
        return tf.image.resize_bilinear(x, size, align_corners=True)

    pooled = slim.avg_pool2d(x, [(extent - 1) // output_stride + 1 for extent in window], stride, padding="VALID")
    endpoints["pooled"] = pooled
    gate = slim.conv2d(pooled, 128, 1, activation_fn=hard_sigmoid, scope="image_pooling")
    gate = resize(gate, [(extent - 1) // output_stride + 1 for extent in size])
    x = slim.conv2d(x, 128, 1, scope="aspp0", **norm(epsilon=1e-5)) * gate
    endpoints["aspp"] = x
    with tf.variable_scope("decoder"), slim.arg_scope([slim.conv2d], activation_fn=None):
        low_level = slim.conv2d(endpoints["mid_level_features"], CLASSES, 1, scope="feature_projection0")
        x = resize(x, [(extent - 1) // 8 + 1 for extent in size])
        x = slim.conv2d(x, CLASSES, 1, scope="decoder_conv0") + low_level
    endpoints["logits"] = x
    return resize(x, size)


def run(units, final, skip, size, output_stride, window) -> dict[str, np.ndarray]:
    """Names and shapes of the variables, and what a network computes of them, thinned."""
    with tf.Graph().as_default(), tf.Session() as session:
        images = formula.images("picture", (1, *size, 3)).astype(np.float32)
        endpoints = {}
        features = trunk(tf.constant((2.0 / 255.0) * images - 1.0), units, final, output_stride, skip, endpoints)
        endpoints["features"] = features
        endpoints["result"] = lraspp(features, size, output_stride, window, (4, 5), endpoints)
        variables = tf.global_variables()
        for variable in variables:
            variable.load(value(variable.op.name, variable.shape.as_list()), session)
        arrays = thin(session.run(endpoints))
        arrays["names"] = np.array([variable.op.name for variable in variables])
        arrays["shapes"] = np.array([" ".join(map(str, variable.shape.as_list())) for variable in variables])
        return arrays


def main():
    # Windows of 7x7 pixels, of which 2x3 fit; and of 5x7 at stride 16, of which 1x2 fit.
    networks = {
        "small": run(SMALL, 288, 2, (353, 545), 32, (193, 193)),
        "large": run(LARGE, 480, 5, (97, 193), 16, (65, 97)),
    }
    arrays = {f"{name}:{key}": array for name, outputs in networks.items() for key, array in outputs.items()}
    np.savez_compressed(pathlib.Path(__file__).with_name("tf_mobilenet_v3.npz"), **arrays)


if __name__ == "__main__":
    main()
