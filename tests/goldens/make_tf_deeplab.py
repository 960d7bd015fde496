"""Makes what research/deeplab computes, and small checkpoints of TensorFlow's own.

Run from the checkout, with tensorflow-cpu and tf_slim installed (made with 2.12.1 and 1.1.0; BatchNorm of tf_slim needs
a TensorFlow below 2.13):

    PYTHONPATH=. python tests/goldens/make_tf_deeplab.py [xception_41 dense ...]

writes tests/goldens/tf_deeplab_*.npz of these networks, or, without a name, of all and
tests/pretrained/readers/data/{small,partitioned}.ckpt.*. research/deeplab runs on TensorFlow 1 only,
so that its networks are put together here from the layers of slim that it uses, after `research/deeplab/model.py`,
`core/feature_extractor.py`, `core/resnet_v1_beta.py`, `core/xception.py`, `core/dense_prediction_cell.py` and
`research/slim/nets/mobilenet/{mobilenet,mobilenet_v2,conv_blocks}.py` of tensorflow/models. Weights are `formula`'s.
"""

import functools
import pathlib
import sys

import numpy as np
import tensorflow.compat.v1 as tf
import tf_slim as slim
from tf_slim.nets import resnet_utils

from tests.goldens import formula

GOLDENS = pathlib.Path(__file__).parent
DATA = GOLDENS.parent / "pretrained" / "readers" / "data"
CLASSES = 5

# Features at width 0.5 (`divisible_by` 1), stride and expansion of the units.
MOBILENET_UNITS = (
    [(8, 1, 1), (12, 2, 6), (12, 1, 6), (16, 2, 6), (16, 1, 6), (16, 1, 6)]
    + [(32, 2, 6), (32, 1, 6), (32, 1, 6), (32, 1, 6), (48, 1, 6), (48, 1, 6), (48, 1, 6)]
    + [(80, 2, 6), (80, 1, 6), (80, 1, 6), (160, 1, 6)]
)  # fmt: skip


# Features and strides of the entry flow's units, and the number of units of the middle flow.
XCEPTIONS = {
    41: ([(128, 2), (256, 2), (728, 2)], 8),
    65: ([(128, 2), (256, 2), (728, 2)], 16),
    71: ([(128, 2), (256, 1), (256, 2), (728, 1), (728, 2)], 16),
}
# Input branch and rates of the dense prediction cell.
CELL = [(-1, [1, 6]), (0, [18, 15]), (1, [6, 3]), (0, [1, 1]), (0, [6, 21])]


def norm(**options):
    """slim's BatchNorm at inference, as an argument of its layers."""
    return {"normalizer_fn": slim.batch_norm, "normalizer_params": {"is_training": False, "scale": True, **options}}


def mobilenet_v2(x, output_stride, endpoints):
    """Features at the output stride; slim's BatchNorm has its default epsilon."""
    scope = slim.arg_scope([slim.conv2d, slim.separable_conv2d], activation_fn=tf.nn.relu6, padding="SAME", **norm())
    with tf.variable_scope("MobilenetV2"), scope:
        x = slim.conv2d(x, 16, 3, stride=2, scope="Conv")
        current, rate = 2, 1
        for i, (features, stride, expansion) in enumerate(MOBILENET_UNITS):
            reached = current == output_stride
            options = {"stride": 1, "rate": rate} if reached else {"stride": stride, "rate": 1}
            current, rate = (current, rate * stride) if reached else (current * stride, 1)
            with tf.variable_scope(f"expanded_conv_{i}" if i else "expanded_conv"):
                shortcut = x
                if expansion > 1:
                    x = slim.conv2d(x, expansion * x.shape[-1], 1, scope="expand")
                x = slim.separable_conv2d(x, None, 3, depth_multiplier=1, scope="depthwise", **options)
                x = slim.conv2d(x, features, 1, activation_fn=None, scope="project")
                if options["stride"] == 1 and shortcut.shape[-1] == features:
                    x = x + shortcut
            endpoints[f"unit{i}"] = x
    return x


def bottleneck(x, depth, depth_bottleneck, stride, endpoints, rate=1):
    """ReLU after the sum; the stride is the 3x3 convolution's."""
    with tf.variable_scope("bottleneck_v1"):
        if x.shape[-1] == depth:
            shortcut = resnet_utils.subsample(x, stride)
        else:
            shortcut = slim.conv2d(x, depth, 1, stride=stride, activation_fn=None, scope="shortcut")
        residual = slim.conv2d(x, depth_bottleneck, 1, scope="conv1")
        residual = resnet_utils.conv2d_same(residual, depth_bottleneck, 3, stride, rate=rate, scope="conv2")
        residual = slim.conv2d(residual, depth, 1, activation_fn=None, scope="conv3")
        x = tf.nn.relu(shortcut + residual)
        endpoints[f"unit{sum(name.startswith('unit') for name in endpoints)}"] = x
        endpoints.setdefault("residuals", []).append(residual)
    return x


def resnet_v1_50_beta(x, output_stride, endpoints):
    """Features at the output stride, and the low-level features as endpoint."""
    scope = slim.arg_scope([slim.conv2d], activation_fn=tf.nn.relu, **norm(epsilon=1e-5))
    with tf.variable_scope("resnet_v1_50"), scope:
        for i, (features, stride) in enumerate([(64, 2), (64, 1), (128, 1)], 1):
            x = resnet_utils.conv2d_same(x, features, 3, stride=stride, scope=f"conv1_{i}")
        x = slim.max_pool2d(x, 3, stride=2, padding="SAME")
        blocks = [
            resnet_utils.Block(
                f"block{number}",
                functools.partial(bottleneck, endpoints=endpoints),
                [
                    {"depth": 4 * width, "depth_bottleneck": width, "stride": stride if i == units - 1 else 1}
                    for i in range(units)
                ],
            )
            for number, (width, units, stride) in enumerate([(64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1)], 1)
        ]
        x = resnet_utils.stack_blocks_dense(x, blocks, output_stride // 4)
    endpoints["low_level_features"] = endpoints.pop("residuals")[1]
    return x


def xception_unit(x, features, stride, rate, shortcut, endpoints):
    """Three separable convolutions; a strided one pads explicitly."""
    inside = tf.nn.relu if shortcut == "none" else None
    with (
        tf.variable_scope("xception_module"),
        slim.arg_scope([slim.separable_conv2d, slim.conv2d], activation_fn=inside),
    ):
        residual = x
        for i, depth in enumerate(features, 1):
            step = stride if i == 3 else 1
            residual = residual if inside else tf.nn.relu(residual)
            if step > 1:
                residual = tf.pad(residual, [[0, 0], [rate, rate], [rate, rate], [0, 0]])
            residual = slim.separable_conv2d(
                residual, None, 3, depth_multiplier=1, stride=step, rate=rate,
                padding="VALID" if step > 1 else "SAME", scope=f"separable_conv{i}_depthwise",
            )  # fmt: skip
            residual = slim.conv2d(residual, depth, 1, scope=f"separable_conv{i}_pointwise")
            if i == 2:
                endpoints["hidden"] = residual
        if shortcut == "conv":
            x = slim.conv2d(x, features[-1], 1, stride=stride, scope="shortcut")
        return residual if shortcut == "none" else x + residual


def xception(x, output_stride, endpoints, *, depth):
    """Features at the output stride; the decoder reads the unit that leaves stride 4."""
    entry, middle = XCEPTIONS[depth]
    units = [(f"entry_flow/block{i}/unit_1", (f, f, f), s, "conv") for i, (f, s) in enumerate(entry, 1)]
    units += [(f"middle_flow/block1/unit_{i + 1}", (728, 728, 728), 1, "sum") for i in range(middle)]
    units += [("exit_flow/block1/unit_1", (728, 1024, 1024), 2, "conv")]
    units += [("exit_flow/block2/unit_1", (1536, 1536, 2048), 1, "none")]
    scope = slim.arg_scope([slim.conv2d, slim.separable_conv2d], padding="SAME", **norm(epsilon=1e-3))
    with tf.variable_scope(f"xception_{depth}"), scope:
        with slim.arg_scope([slim.conv2d], activation_fn=tf.nn.relu):
            x = resnet_utils.conv2d_same(x, 32, 3, stride=2, scope="entry_flow/conv1_1")
            x = resnet_utils.conv2d_same(x, 64, 3, stride=1, scope="entry_flow/conv1_2")
        current, rate = 2, 1
        for i, (name, features, stride, shortcut) in enumerate(units):
            reached = current == output_stride
            with tf.variable_scope(name):
                x = xception_unit(x, features, 1 if reached else stride, rate, shortcut, endpoints)
            if stride == 2 and current == 4:
                endpoints["low_level_features"] = endpoints["hidden"]
            current, rate = (current, rate * stride) if reached else (current * stride, 1)
            endpoints[f"unit{i}"] = x
        del endpoints["hidden"]
    return x


def cell(x, output_stride):
    """The dense prediction cell, in the place of ASPP."""
    branches = []
    with tf.variable_scope("meta_architecture"):
        for i, (source, rates) in enumerate(CELL):
            source = x if source < 0 else branches[source]
            rates = [rate * 16 // output_stride for rate in rates]
            branches.append(separable(source, 256, rates, f"branch{i}"))
        return slim.conv2d(tf.concat(branches, 3), 256, 1, scope="concat_projection")


def separable(x, features, rate, scope):
    """BatchNorm and ReLU after both convolutions."""
    x = slim.separable_conv2d(x, None, 3, depth_multiplier=1, rate=rate, scope=f"{scope}_depthwise")
    return slim.conv2d(x, features, 1, scope=f"{scope}_pointwise")


def aspp(x, *, image_pooling=True, rates=(6, 12, 18), is_separable, cell_at=None):
    """ASPP, or the dense prediction cell for an output stride."""
    if cell_at is not None:
        return cell(x, cell_at)
    branches, feature_size = [], x.shape[1:3].as_list()
    if image_pooling:
        pooled = slim.avg_pool2d(x, feature_size, feature_size, padding="VALID")
        pooled = slim.conv2d(pooled, 256, 1, scope="image_pooling")
        branches.append(tf.image.resize_bilinear(pooled, feature_size, align_corners=True))
    branches.append(slim.conv2d(x, 256, 1, scope="aspp0"))
    for i, rate in enumerate(rates, 1):
        if is_separable:
            branches.append(separable(x, 256, rate, f"aspp{i}"))
        else:
            branches.append(slim.conv2d(x, 256, 3, rate=rate, scope=f"aspp{i}"))
    return slim.conv2d(tf.concat(branches, 3), 256, 1, scope="concat_projection")


def head(x, size, endpoints, *, is_separable, decoder, **aspp_options):
    """Logits at the images' size."""
    resize = functools.partial(tf.image.resize_bilinear, align_corners=True)
    layers = [slim.conv2d, slim.separable_conv2d]
    with slim.arg_scope(layers, activation_fn=tf.nn.relu, padding="SAME", **norm(epsilon=1e-5)):
        x = endpoints["aspp"] = aspp(x, is_separable=is_separable, **aspp_options)
        if decoder:
            with tf.variable_scope("decoder"):
                low_level = slim.conv2d(endpoints["low_level_features"], 48, 1, scope="feature_projection0")
                decoder_size = [(extent - 1) // 4 + 1 for extent in size]
                x = tf.concat([resize(x, decoder_size), resize(low_level, decoder_size)], 3)
                if is_separable:
                    x = separable(separable(x, 256, 1, "decoder_conv0"), 256, 1, "decoder_conv1")
                else:
                    x = slim.repeat(x, 2, slim.conv2d, 256, 3, scope="decoder_conv0")
            endpoints["decoder"] = x
        with tf.variable_scope("logits"):
            x = slim.conv2d(x, CLASSES, 1, activation_fn=None, normalizer_fn=None, scope="semantic")
    endpoints["logits"] = x
    return resize(x, size)


def run(backbone, size, *, output_stride=16, **options) -> dict[str, np.ndarray]:
    """Names and shapes of the variables, and what a network computes of them, thinned."""
    with tf.Graph().as_default(), tf.Session() as session:
        images = formula.images("picture", (1, *size, 3)).astype(np.float32)
        endpoints = {}
        features = backbone(tf.constant((2.0 / 255.0) * images - 1.0), output_stride, endpoints)
        endpoints["result"] = head(features, size, endpoints, **options)
        variables = tf.global_variables()
        for variable in variables:
            variable.load(value(variable.op.name, variable.shape.as_list()), session)
        arrays = thin(session.run(endpoints))
        arrays["names"] = np.array([variable.op.name for variable in variables])
        arrays["shapes"] = np.array([" ".join(map(str, variable.shape.as_list())) for variable in variables])
        return arrays


def value(name: str, shape) -> np.ndarray:
    """A variable by its name; the last axis of a depthwise kernel is the multiplier, so that its fan-in is a window."""
    axis = 2 if name.endswith("/depthwise_weights") else -1
    return formula.weight(name, shape, is_norm="/BatchNorm/" in name, output_axis=axis)


def thin(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """About a hundred numbers of each array: every so many rows, columns and channels, the first one included."""
    thinned = {}
    for name, array in values.items():
        steps = (1, -(-array.shape[1] // 5), -(-array.shape[2] // 5), -(-array.shape[3] // 5))
        thinned[name] = array[tuple(slice(None, None, step) for step in steps)]
        thinned[f"{name}/steps"] = np.array(steps)
    return thinned


def write_small_checkpoints() -> None:
    """Variables of several types in two data files, and a partitioned variable."""
    DATA.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as session:
        names = [f"scope/block{i}/unit/weights" for i in range(40)]
        halves = [("a/half", tf.float16), ("a/brain", tf.bfloat16), ("a/double", tf.float64), ("a/int", tf.int32)]
        parts = [
            [formula.uniform(name, (2, 3)) for name in names] + [np.int64(7), np.zeros((0, 3), np.float32)],
            [tf.cast(formula.uniform(name, (5,), -9, 9), dtype) for name, dtype in halves],
        ]
        keys = [[*names, "global_step", "empty"], [name for name, _ in halves]]
        shards = [str(DATA / f"part{i}") for i in (0, 1)]
        for prefix, key, tensors in zip(shards, keys, parts, strict=True):
            session.run(
                tf.raw_ops.SaveV2(prefix=prefix, tensor_names=key, shape_and_slices=[""] * len(key), tensors=tensors)
            )
        session.run(
            tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=shards, destination_prefix=str(DATA / "small.ckpt"))
        )
        partitioner = tf.fixed_size_partitioner(2)
        with tf.variable_scope("whole"):
            tf.get_variable("part", (4, 2), partitioner=partitioner, initializer=tf.zeros_initializer())
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(DATA / "partitioned.ckpt"), write_meta_graph=False, write_state=False)


_PLAIN = {"is_separable": False, "decoder": True}
_SEPARABLE = {"is_separable": True, "decoder": True}
NETWORKS = {
    "mobilenet_v2": lambda: run(mobilenet_v2, (64, 64), rates=(), is_separable=False, decoder=False),
    "resnet_v1_50": lambda: run(resnet_v1_50_beta, (321, 321), **_SEPARABLE),
    # An even size shows on which side the first convolution pads; max-pooling then has an odd one.
    "dense": lambda: run(resnet_v1_50_beta, (66, 66), image_pooling=False, **_PLAIN),
    "xception_41": lambda: run(functools.partial(xception, depth=41), (65, 97), **_SEPARABLE),
    "xception_65": lambda: run(
        functools.partial(xception, depth=65), (66, 98), output_stride=8, rates=(12, 24, 36), **_PLAIN
    ),
    "xception_71": lambda: run(functools.partial(xception, depth=71), (81, 65), cell_at=16, **_SEPARABLE),
    # Features of 24x23 pixels, which the largest rates of the cell still reach.
    "mobilenet_v2_cell": lambda: run(mobilenet_v2, (369, 353), cell_at=16, is_separable=False, decoder=False),
}


def main(names):
    if not names:
        write_small_checkpoints()
    for name in names or NETWORKS:
        np.savez_compressed(GOLDENS / f"tf_deeplab_{name}.npz", **NETWORKS[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
