"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC that also learns from a teacher, for few and uneven pictures.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:teacher=teacher --workdir runs/leg1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:leg=2,teacher=teacher,init=runs/leg1 \
        --workdir runs/leg2
    deeplab-jax convert --from workdir runs/leg5 --half --size 321x321 --output NAME

The teacher, here Google's mobile DeepLabv3 with MobileNetV2, sees every picture as the network does. Pictures with
classes that fewer than 15 % of all pictures have come more often, crops vary in scale and colour, and the variables are
averaged. Without a teacher the labels alone are learned from. Each leg starts from the last one's weights with fresh
momentum. One need not end before the next begins: legs 1, 2 and 4 were stopped at the steps below, their rates still
high. (Leg 1 averaged parameters alone, without batch statistics.)

Run here on 3,462 pictures (3,174 of VOC and SBD, long side at most 352 pixels, and 288 of COCO), on two cores of an
Intel Xeon at times shared with other work, and scored on 449 pictures of val at their own size, squeezed for the
network to 257x257:

    leg  input             steps           minutes  training loss, mean IoU in the last 20 steps  mean IoU, accuracy
    1    crops of 193      2,143 of 5,200       56  .707, .247
    2    crops of 225        610 of 1,600       26  .637, .311
    3    crops of 193        520 of 520         18  .588, .381                                    .4707, .8688
    4    crops of 193      1,255 of 3,300       22  .831, .426                                    .4677, .8605 (at 990)
    5    whole, 257x257    2,500 of 2,500       70  .395, .628                                    .5364, .8787

(From leg 4 on, pixels of objects weigh more in the loss.) No leg's features reach ASPP's rate of 18: its outer taps
kept the values they were drawn with, which 257x257 does not show, and 321x321, with .4997, did. The preset
`deeplab_v3_plus_efficientnet_lite0_pascalvoc` is leg 5 with zeros there, the value at which training starts such taps
(`deeplab_jax/models/taps.py`):

    input                                          mean IoU, accuracy
    257x257                                        .5364, .8787
    321x321, the preset's                          .5485, .8868
    385x385                                        .5459, .8871
    321x321, scales of .75, 1, 1.25, mirrored too  .5726, .8971

The teacher's file scores .7202 at 257x257 and .7207 at its own 513x513.
"""

from deeplab_jax.config import load_config, parse_arg
from deeplab_jax.errors import UserError

_ARGUMENTS = ("size", "steps", "rate", "init")

# Rates are of the head; `backbone` is the backbone's share of them, `object_weight` what a pixel of an object counts
# beside one of the background.
_COMMON = {
    "init": "",
    "size": 193,
    "resize": "scale_crop",
    "scale_range": (0.4, 1.1),
    "backbone": 0.25,
    "object_weight": 1.0,
    "ema_decay": 0.998,
}
_LEGS = {
    1: {"init": "efficientnet_lite0_imagenet", "steps": 5200, "rate": 0.2},
    2: {"size": 225, "scale_range": (0.5, 1.3), "steps": 1600, "rate": 0.1, "ema_decay": 0.995},
    3: {"steps": 520, "rate": 0.05, "ema_decay": 0.99},
    4: {"scale_range": (0.5, 1.3), "steps": 3300, "rate": 0.015, "backbone": 0.5, "object_weight": 2.0},
    5: {"size": 257, "resize": "squeeze", "steps": 2500, "rate": 0.02, "backbone": 0.5, "object_weight": 1.5},
}


def get_config(arg=None):
    """Arguments: `leg`, `teacher` and `init` (presets or folders), `size` (of the input), `batch`, `steps`, `rate`."""
    arg = parse_arg(arg, leg=1, teacher="", init="", size=None, batch=8, steps=None, rate=None)
    if arg.leg not in _LEGS:
        raise UserError(f"leg={arg.leg} does not exist; there are {', '.join(map(str, _LEGS))}")
    leg = _COMMON | _LEGS[arg.leg] | {name: arg[name] for name in _ARGUMENTS if arg[name]}
    if not leg["init"]:
        raise UserError(f"leg {arg.leg} starts from the one before: give its workdir, init=FOLDER")
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=leg["size"], batch=arg.batch, steps=leg["steps"], rate=leg["rate"], init=leg["init"],
    )  # fmt: skip

    config.data.resize = leg["resize"]
    config.data.scale_range = leg["scale_range"]
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3
    config.data.repeat_threshold = 0.15

    config.optimizer.learning_rate_multipliers.backbone = leg["backbone"]
    if leg["object_weight"] != 1:
        config.loss.class_weights = (1.0, *[leg["object_weight"]] * 20)
    config.train.ema_decay = leg["ema_decay"]
    config.loss.teacher = arg.teacher or None
    config.checkpoint.every_percent = 5.0
    return config
