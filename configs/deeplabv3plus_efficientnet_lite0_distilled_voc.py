"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC that also learns from a teacher, for few and uneven pictures.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite --output runs/teacher deeplabv3_mnv2_pascal_quant.tflite
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:teacher=runs/teacher --workdir runs/net

The teacher, here Google's mobile DeepLabv3 with MobileNetV2, sees every crop as the network does. Pictures with classes
that fewer than 15 % of all pictures have come more often, crops vary in scale and colour, and the parameters are
averaged. Without a teacher the labels alone are learned from.

Run here with this teacher for the 2,000 steps below on 3,174 pictures of VOC and SBD (long side at most 352 pixels), on
two AMD EPYC cores shared with other work, and scored on 449 pictures of val at their own size: mean IoU .4080, pixel
accuracy .8498; with pictures squeezed to 257x257 instead of the crops' 193x193, .4197 and .8559. The teacher's file
scores .7207. What the teacher alone is worth was not measured.
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `teacher` and `init` (presets or folders), `size` (of crops), `batch`, `steps`, `rate`."""
    arg = parse_arg(arg, teacher="", init="efficientnet_lite0_imagenet", size=193, batch=8, steps=2000, rate=0.2)
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=arg.size, batch=arg.batch, steps=arg.steps, rate=arg.rate, init=arg.init,
    )  # fmt: skip

    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 1.5)
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3
    config.data.repeat_threshold = 0.15

    config.train.ema_decay = 0.995
    config.loss.teacher = arg.teacher or None
    config.checkpoint.every_percent = 5.0
    return config
