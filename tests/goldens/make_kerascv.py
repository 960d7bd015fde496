"""Runs KerasCV on weights and images from `formula.py` and stores what it computes.

Needs an environment of its own, in which the files here were made:

    pip install keras-cv==0.9.0 keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 h5py
    python tests/goldens/make_kerascv.py forward         # kerascv_forward.npz
    python tests/goldens/make_kerascv.py parts           # kerascv_parts.npz
    python tests/goldens/make_kerascv.py training        # kerascv_training.npz
    python tests/goldens/make_kerascv.py training64      # kerascv_training64.npz, the same in float64

    python tests/goldens/make_kerascv.py probabilities FOLDER    # for tests marked `peers`: too much to store
    python tests/goldens/make_kerascv.py trajectory FOLDER       # likewise
"""

import json
import os
import pathlib
import sys
import tempfile
import zipfile

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
COMMAND = sys.argv[1] if len(sys.argv) > 1 else ""
if COMMAND == "training64":
    os.environ["JAX_ENABLE_X64"] = "1"

import formula  # noqa: E402
import h5py  # noqa: E402
import keras  # noqa: E402
import keras_cv  # noqa: E402
import numpy as np  # noqa: E402
from keras.src.backend.common import dtypes  # noqa: E402

CLASSES = 21
SIZES = (64, 256, 640)
STEPS = 5
FLOAT64_STEPS = (0, 4)
FOLDER = pathlib.Path(__file__).parent


def build_backbone(blocks=(3, 4, 6, 3)):
    """ResNet v2 as the presets `resnet50_v2`, `resnet101_v2`, `resnet152_v2` configure it."""
    return keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(blocks),
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=(None, None, 3),
    )


def build_model():
    """The guide's model. In float64 its head is passed in, since the default one is float32 whatever `floatx` says."""
    head = None
    if keras.config.floatx() == "float64":
        head = keras.Sequential(
            [
                keras.layers.Conv2D(256, 1, padding="same", use_bias=False, name="segmentation_head_conv"),
                keras.layers.BatchNormalization(name="segmentation_head_norm"),
                keras.layers.ReLU(name="segmentation_head_relu"),
                keras.layers.UpSampling2D(size=(4, 4), interpolation="bilinear"),
                keras.layers.Conv2D(CLASSES, 1, use_bias=False, activation="softmax", name="segmentation_output"),
            ],
            name="sequential_7",  # as the default one, so that the formula gives it the same weights
        )
    return keras_cv.models.DeepLabV3Plus(backbone=build_backbone(), num_classes=CLASSES, segmentation_head=head)


def assign(variables, variant=""):
    """Sets variables by the formula of their paths."""
    for variable in variables:
        variable.assign(formula.weight(variable.path, tuple(variable.shape), is_norm=False, variant=variant))


def stored_layout(model, path: pathlib.Path) -> list[list]:
    """Where `save_weights` puts each variable: [group, recorded name of the layer, number, variable's path, shape]."""
    model.save_weights(path)
    by_content = {np.asarray(variable).tobytes(): variable for variable in model.variables}
    rows = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            variable = by_content[item[()].tobytes()]
            group, _, number = name.rpartition("/vars/")
            rows.append([group, str(item.parent.attrs["name"]), number, variable.path, list(variable.shape)])

    with h5py.File(path) as file:
        file.visititems(visit)
    return rows


def sample(array, count=10):
    """`count` by `count` pixels of (1, H, W, C), the corners among them."""
    rows, columns = (np.linspace(0, extent - 1, min(count, extent)).astype(int) for extent in array.shape[1:3])
    return np.asarray(array)[:, rows][:, :, columns].astype(np.float32)


def forward() -> None:
    """Probabilities at three sizes, and what every block hands on at the smallest."""
    model = build_model()
    assign(model.variables)
    with tempfile.TemporaryDirectory() as folder:
        layout = stored_layout(model, pathlib.Path(folder) / "model.weights.h5")
        backbones = {}
        for name, blocks in {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}.items():
            backbone = build_backbone(blocks)
            assign(backbone.variables)
            backbones[name] = stored_layout(backbone, pathlib.Path(folder) / "backbone.weights.h5")
        model.save(pathlib.Path(folder) / "model.keras")
        with zipfile.ZipFile(pathlib.Path(folder) / "model.keras") as archive:
            config = archive.read("config.json").decode()

    outputs = {}
    for size in SIZES:
        outputs[f"probabilities{size}"] = sample(probabilities(model, size))

    _, extractor, pyramid, _, projector, _, head = model.layers
    names = ["conv1_conv", *(layer.name for layer in extractor.layers if layer.name.endswith("_out"))]
    taps = keras.Model(extractor.inputs, [extractor.get_layer(name).output for name in names])
    images = formula.images("image64", (1, 64, 64, 3)).astype(np.float32)
    values = dict(zip(names, taps(images, training=False), strict=True))
    features = values["v2_stack_3_block3_out"]
    for i, branch in enumerate(pyramid.aspp_parallel_channels):
        values[f"aspp{i}"] = branch(features, training=False)
    values["aspp"] = pyramid(features, training=False)
    values["low_level"] = projector(values["v2_stack_0_block3_out"], training=False)
    enlarged = keras.layers.UpSampling2D(8, interpolation="bilinear")(values["aspp"])
    x = keras.ops.concatenate([enlarged, values["low_level"]], axis=-1)
    for layer in head.layers[:3]:
        x = layer(x, training=False)
    values["head"] = x
    for name, value in values.items():
        outputs[f"endpoint/{name}"] = sample(value, 2)[..., :: max(1, value.shape[-1] // 16)]
    np.savez_compressed(
        FOLDER / "kerascv_forward.npz",
        layout=json.dumps(layout),
        backbone_layouts=json.dumps(backbones),
        config=config,
        **outputs,
    )


def probabilities(model, size: int):
    """Of one image, in inference mode."""
    images = formula.images(f"image{size}", (1, size, size, 3))
    return np.asarray(model(images.astype(np.float32), training=False))


def parts() -> None:
    """The pyramid alone where every tap is live, the optimizer on given gradients, the metric."""
    outputs = {}
    pyramid = keras_cv.layers.SpatialPyramidPooling(dilation_rates=[6, 12, 18], num_channels=4)
    features = formula.uniform("features", (1, 40, 40, 8), -1, 1)
    pyramid(features)
    assign(pyramid.variables)
    outputs["aspp/variables"] = json.dumps([[variable.path, list(variable.shape)] for variable in pyramid.variables])
    outputs["aspp/output"] = sample(pyramid(features, training=False), 14)

    # Rates that fall fast and a strong decay: with the guide's a missing decay would not show within 1e-6.
    shapes = {"kernel": (3, 3, 4, 8), "depthwise": (3, 3, 1, 6), "bias": (8,), "scale": (8,)}
    variables = [
        keras.Variable(formula.uniform(f"variable/{name}", shape, -1, 1), name=name) for name, shape in shapes.items()
    ]
    optimizer = keras.optimizers.SGD(
        learning_rate=keras.optimizers.schedules.CosineDecay(0.1, decay_steps=8),
        weight_decay=0.05,
        momentum=0.9,
        clipnorm=10.0,
    )
    optimizer.build(variables)
    outputs["optimizer/shapes"] = json.dumps(shapes)
    for step in range(STEPS):
        gradients = [formula.uniform(f"gradient{step}/{name}", shape, -2, 2) for name, shape in shapes.items()]
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients])
        for variable, slot in zip(variables, optimizer.momentums, strict=True):
            outputs[f"optimizer/{step}/{variable.name}"] = np.asarray(variable)
            outputs[f"optimizer/{step}/{variable.name}/momentum"] = np.asarray(slot)

    metric = keras.metrics.MeanIoU(num_classes=CLASSES, sparse_y_true=False, sparse_y_pred=False)
    accuracy = keras.metrics.CategoricalAccuracy()
    for case in range(4):  # from few classes to all
        labels, scores = metric_case(case)
        for measure in (metric, accuracy):
            measure.reset_state()
            for half in (slice(0, 2), slice(2, 4)):
                measure.update_state(one_hot(labels[half]), scores[half])
        outputs[f"metric/{case}"] = np.asarray([metric.result(), accuracy.result()], np.float64)
    np.savez_compressed(FOLDER / "kerascv_parts.npz", **outputs)


def metric_case(case: int):
    """Labels with void, and scores; classes from 2 + 5 * case on appear in neither."""
    present = 2 + 5 * case
    labels = np.floor(formula.uniform(f"labels{case}", (4, 24, 24), 0, present + 1)).astype(np.uint8)
    labels[labels == present] = 255
    scores = formula.uniform(f"scores{case}", (4, 24, 24, CLASSES))
    scores[..., present:] = 0
    return labels, scores


def one_hot(labels):
    """As the guide makes it: void pixels have no 1."""
    return np.eye(256, dtype=keras.config.floatx())[labels][..., :CLASSES]


def training_batch(step: int):
    """Images (2, 64, 64, 3) and labels with void."""
    labels = np.floor(formula.uniform(f"labels{step}", (2, 64, 64), 0, CLASSES + 1)).astype(np.uint8)
    labels[labels == CLASSES] = 255
    return formula.images(f"image{step}", (2, 64, 64, 3)), labels


class Trainer:
    """The guide's training step taken apart, so that the gradients can be seen."""

    def __init__(self):
        self.model = build_model()
        schedule = keras.optimizers.schedules.CosineDecay(0.007 * 4 / 16, decay_steps=2124)
        self.optimizer = keras.optimizers.SGD(schedule, weight_decay=1e-4, momentum=0.9, clipnorm=10.0)
        self.optimizer.build(self.model.trainable_variables)
        self._loss = keras.losses.CategoricalCrossentropy(from_logits=False)
        self._metrics = (
            keras.metrics.MeanIoU(num_classes=CLASSES, sparse_y_true=False, sparse_y_pred=False),
            keras.metrics.CategoricalAccuracy(),
        )
        self._compute = self._jax_step() if keras.backend.backend() == "jax" else self._tensorflow_step()

    def _jax_step(self):
        import jax

        def loss(trainable, other, images, target):
            prediction, other = self.model.stateless_call(trainable, other, images, training=True)
            return self._loss(target, prediction), (prediction, other)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))

        def compute(images, target):
            model = self.model
            trainable = [variable.value for variable in model.trainable_variables]
            other = [variable.value for variable in model.non_trainable_variables]
            (value, (prediction, other)), gradients = step(trainable, other, images, target)
            for variable, new in zip(model.non_trainable_variables, other, strict=True):
                variable.assign(new)
            return value, prediction, gradients

        return compute

    def _tensorflow_step(self):
        import tensorflow as tf

        @tf.function
        def compute(images, target):
            with tf.GradientTape() as tape:
                prediction = self.model(images, training=True)
                value = self._loss(target, prediction)
            trainable = [variable.value for variable in self.model.trainable_variables]
            # post_bn, which the network does not use
            return value, prediction, tape.gradient(value, trainable, unconnected_gradients="zero")

        return compute

    def step(self, images, labels):
        """One step; returns (loss, mean IoU, accuracy), the gradients by path, and the predicted classes."""
        target = keras.ops.convert_to_tensor(one_hot(labels))
        value, prediction, gradients = self._compute(
            keras.ops.convert_to_tensor(images.astype(keras.config.floatx())), target
        )
        scores = [float(value)]
        for metric in self._metrics:
            metric.reset_state()
            metric.update_state(target, prediction)
            scores.append(float(metric.result()))
        self.optimizer.apply(gradients, self.model.trainable_variables)
        paths = [variable.path for variable in self.model.trainable_variables]
        gradients = {path: np.asarray(gradient) for path, gradient in zip(paths, gradients, strict=True)}
        return scores, gradients, np.argmax(prediction, axis=-1).astype(np.uint8)

    def variables(self):
        """By path."""
        return {variable.path: np.asarray(variable) for variable in self.model.variables}

    def momentums(self):
        """By path of the variable."""
        pairs = zip(self.model.trainable_variables, self.optimizer.momentums, strict=True)
        return {variable.path: np.asarray(slot) for variable, slot in pairs}


def projection(path: str, value) -> float:
    """The product with a vector of unit variance: it moves by as much as the whole value does."""
    direction = formula.uniform(f"projection/{path}", np.shape(value), -(3**0.5), 3**0.5)
    return float(np.sum(np.asarray(value, np.float64) * direction))


def training() -> None:
    """Steps from variables, momentum and step count by formula each, so that no rounding accumulates."""
    trainer = Trainer()
    trained = [variable.path for variable in trainer.model.trainable_variables if "post_bn" not in variable.path]
    statistics = [variable.path for variable in trainer.model.non_trainable_variables if "post_bn" not in variable.path]
    all_predictions = []
    names = ("scores", "gradient_norms", "gradients", "momentums", "updates", "statistics")
    rows = {name: [] for name in names}
    for step in range(STEPS) if keras.config.floatx() == "float32" else FLOAT64_STEPS:
        assign(trainer.model.variables, variant=str(step))
        before = trainer.variables()
        for variable, slot in zip(trainer.model.trainable_variables, trainer.optimizer.momentums, strict=True):
            slot.assign(formula.uniform(f"momentum{step}/{variable.path}", tuple(variable.shape), -1e-3, 1e-3))
        trainer.optimizer.iterations.assign(400 * step)
        scores, gradients, predictions = trainer.step(*training_batch(step))
        all_predictions.append(predictions)
        after, momentums = trainer.variables(), trainer.momentums()
        rows["scores"].append(scores)
        rows["gradient_norms"].append([np.linalg.norm(gradients[path].astype(np.float64)) for path in trained])
        rows["gradients"].append([projection(path, gradients[path]) for path in trained])
        rows["momentums"].append([projection(path, momentums[path]) for path in trained])
        rows["updates"].append([projection(path, after[path] - before[path]) for path in trained])
        rows["statistics"].append([projection(path, after[path]) for path in statistics])
    if keras.config.floatx() == "float32":  # the rest is compared where rounding is no matter
        del rows["gradients"], rows["momentums"], rows["updates"]
    np.savez_compressed(
        FOLDER / f"kerascv_training{'64' if keras.config.floatx() == 'float64' else ''}.npz",
        trained=json.dumps(trained),
        statistics_paths=json.dumps(statistics),
        predictions=np.stack(all_predictions),
        **{name: np.asarray(row, keras.config.floatx()) for name, row in rows.items()},
    )


def trajectory(folder: pathlib.Path) -> None:
    """Five steps on end from one set of variables: state before each, its gradients, and the state behind the last.

    Writes step0.npz to step5.npz, 2.7 GB.
    """
    trainer = Trainer()
    assign(trainer.model.variables)
    for step in range(STEPS + 1):
        arrays = {f"variable/{path}": value for path, value in trainer.variables().items()}
        arrays |= {f"momentum/{path}": value for path, value in trainer.momentums().items()}
        if step < STEPS:
            images, labels = training_batch(step)
            scores, gradients, predictions = trainer.step(images, labels)
            arrays |= {"scores": scores, "predictions": predictions, "images": images, "labels": labels}
            arrays |= {f"gradient/{path}": value for path, value in gradients.items()}
        np.savez(folder / f"step{step}.npz", **arrays)


def all_probabilities(folder: pathlib.Path) -> None:
    """Every pixel's probabilities at the three sizes."""
    model = build_model()
    assign(model.variables)
    np.savez(folder / "probabilities.npz", **{str(size): probabilities(model, size) for size in SIZES})


if __name__ == "__main__":
    if COMMAND == "training64":
        keras.config.set_floatx("float64")
        # Keras holds whatever mixes dtypes on JAX to 32 bits, BatchNorm among it.
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    if COMMAND in ("trajectory", "probabilities"):
        {"trajectory": trajectory, "probabilities": all_probabilities}[COMMAND](pathlib.Path(sys.argv[2]))
    else:
        {"forward": forward, "parts": parts, "training": training, "training64": training}[COMMAND]()
