"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC that also learns from a teacher, for few and uneven pictures.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:teacher=teacher --workdir runs/leg1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:leg=2,teacher=teacher,init=runs/leg1 \
        --workdir runs/leg2

The teacher, here Google's mobile DeepLabv3 with MobileNetV2, sees every crop as the network does. Pictures with classes
that fewer than 15 % of all pictures have come more often, crops vary in scale and colour, and the parameters are
averaged. Without a teacher the labels alone are learned from. Each leg starts from the last one's weights with fresh
momentum; the crops grow.
"""

from deeplab_jax.config import load_config, parse_arg
from deeplab_jax.errors import UserError

_LEGS = {
    1: {
        "init": "efficientnet_lite0_imagenet",
        "size": 193,
        "scale_range": (0.4, 1.1),
        "steps": 5200,
        "rate": 0.2,
        "ema_decay": 0.998,
    },
    2: {"init": "", "size": 225, "scale_range": (0.5, 1.3), "steps": 1600, "rate": 0.1, "ema_decay": 0.995},
}


def get_config(arg=None):
    """Arguments: `leg`, `teacher` and `init` (presets or folders), `size` (of crops), `batch`, `steps`, `rate`."""
    arg = parse_arg(arg, leg=1, teacher="", init="", size=None, batch=8, steps=None, rate=None)
    if arg.leg not in _LEGS:
        raise UserError(f"leg={arg.leg} does not exist; there are {', '.join(map(str, _LEGS))}")
    leg = _LEGS[arg.leg] | {name: arg[name] for name in ("size", "steps", "rate", "init") if arg[name]}
    if not leg["init"]:
        raise UserError(f"leg {arg.leg} starts from the one before: give its workdir, init=FOLDER")
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=leg["size"], batch=arg.batch, steps=leg["steps"], rate=leg["rate"], init=leg["init"],
    )  # fmt: skip

    config.data.resize = "scale_crop"
    config.data.scale_range = leg["scale_range"]
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3
    config.data.repeat_threshold = 0.15

    config.train.ema_decay = leg["ema_decay"]
    config.loss.teacher = arg.teacher or None
    config.checkpoint.every_percent = 5.0
    return config
