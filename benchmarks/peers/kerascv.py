"""The worker of KerasCV: the guide's model with its optimizer, loss and metrics, and its input pipeline.

A step is `train_on_batch` on the batches of the guide's pipeline, float images and one-hot labels. KERAS_BACKEND
selects the backend.
"""

import pathlib

import keras
import keras_cv
import numpy as np

from benchmarks import worker

CLASSES = 21
PACKAGES = ("keras", "keras-cv", "jax", "tensorflow-cpu", "numpy")


def build_model() -> keras.Model:
    """Builds the guide's `from_preset("resnet50_v2_imagenet")` without the preset's weights, and compiles it."""
    backbone = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[3, 4, 6, 3],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=(None, None, 3),
    )
    model = keras_cv.models.DeepLabV3Plus(backbone=backbone, num_classes=CLASSES)
    rate = keras.optimizers.schedules.CosineDecay(0.00175, decay_steps=2124)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=rate, weight_decay=0.0001, momentum=0.9, clipnorm=10.0),
        loss=keras.losses.CategoricalCrossentropy(from_logits=False),
        metrics=[
            keras.metrics.MeanIoU(num_classes=CLASSES, sparse_y_true=False, sparse_y_pred=False),
            keras.metrics.CategoricalAccuracy(),
        ],
    )
    return model


def step(task: dict) -> None:
    """Measures train steps."""
    model = build_model()
    size, batch = (64, min(2, task["batch"])) if task["quick"] else (task["size"], task["batch"])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3)).astype(np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, (batch, size, size))]
    # `train_on_batch` returns the metrics as numbers, which waits for the step.
    seconds = worker.repeat(lambda: model.train_on_batch(images, labels), warm_up=1, repetitions=task["repetitions"])
    # Only layers that compute something: the backbone also tracks a last BatchNorm that is not in the graph.
    variables = {id(variable): variable for layer in model.layers for variable in layer.trainable_variables}
    parameters = sum(int(np.prod(variable.shape)) for variable in variables.values())
    worker.report({"step": seconds}, packages=PACKAGES, facts={"parameters": parameters, "batch": list(images.shape)})


def input_pipeline(task: dict) -> None:
    """Measures the guide's data set, restarted when it ends: 20 batches per repetition, reported per batch."""
    import tensorflow as tf
    from keras_cv.datasets.pascal_voc.segmentation import load

    size = task["size"]

    def unpackage(inputs):
        return {"images": inputs["image"], "segmentation_masks": inputs["class_segmentation"]}

    def to_tuple(x):
        return x["images"], tf.one_hot(tf.cast(tf.squeeze(x["segmentation_masks"], axis=-1), "int32"), CLASSES)

    dataset = load(split="sbd_train", data_dir=str(pathlib.Path(task["folder"])))
    dataset = dataset.map(unpackage).map(keras_cv.layers.Resizing(height=size, width=size))
    dataset = dataset.batch(4, drop_remainder=True).map(keras_cv.layers.RandomFlip()).map(to_tuple)
    batches = iter(dataset.repeat())
    count = 2 if task["quick"] else 20

    def work():
        for _ in range(count):
            images, labels = next(batches)
            images.numpy(), labels.numpy()

    seconds = worker.repeat(work, warm_up=1, repetitions=task["repetitions"])
    worker.report({"batch": [time / count for time in seconds]}, packages=PACKAGES, memory=0)


if __name__ == "__main__":
    worker_task = worker.read_task()
    {"step": step, "input": input_pipeline}[worker_task["kind"]](worker_task)
