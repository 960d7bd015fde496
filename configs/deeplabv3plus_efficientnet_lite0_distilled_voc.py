"""DeepLabv3+ with EfficientNet-Lite0 on Pascal VOC that also learns from a teacher, for few and uneven images.

    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:teacher=teacher --workdir runs/leg1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite0_distilled_voc:leg=2,teacher=teacher,init=runs/leg1 \
        --workdir runs/leg2
    deeplab-jax convert --from workdir runs/leg7 runs/leg8 --half --size 321x321 --output mean78
    ... train --config ...:leg=9,teacher=teacher,init=mean78 --workdir runs/leg9
    deeplab-jax convert --from workdir runs/leg9 --half --size 321x321 --output leg9
    deeplab-jax convert --from deeplab_jax mean78 leg9 --half --size 321x321 --output mean9
    ... train --config ...:leg=10,teacher=teacher,init=mean9 --workdir runs/leg10
    deeplab-jax convert --from workdir runs/leg10 --half --size 321x321 --output leg10
    deeplab-jax convert --from deeplab_jax mean9 leg10 --half --size 321x321 --output NAME

The teacher, here Google's mobile DeepLabv3 with MobileNetV2, sees every image as the network does. Images with
classes that fewer than 15 % of all images have come more often, crops vary in scale and color, and the variables are
averaged. Without a teacher the labels alone are learned from. Each leg starts from the last one's weights with fresh
momentum. One need not end before the next begins: legs 1, 2 and 4 were stopped at the steps below, their rates still
high. (Leg 1 averaged parameters alone, without batch statistics.)

Run here on 3,462 images (3,174 of VOC and SBD, long side at most 352 pixels, and 288 of COCO), on two cores of an
Intel Xeon at times shared with other work, and scored on 449 images of val at their own size, squeezed for the
network to 257x257:

    leg  input             steps           minutes  training loss, mean IoU in the last 20 steps  mean IoU, accuracy
    1    crops of 193      2,143 of 5,200       56  .707, .247
    2    crops of 225        610 of 1,600       26  .637, .311
    3    crops of 193        520 of 520         18  .588, .381                                    .4707, .8688
    4    crops of 193      1,255 of 3,300       22  .831, .426                                    .4677, .8605 (at 990)
    5    whole, 257x257    2,500 of 2,500       70  .395, .628                                    .5364, .8787
    6    boxes, 257x257    2,600 of 2,600       87  .618, .580                                    .5254, .8715
    7    boxes, 257x257        300 of 300       11  .533, .588                                    .5305, .8765
    8    boxes, 257x257        900 of 900       31  .444, .624                                    .5445, .8831
    9    boxes, 257x257      1,000 of 1,000     42  .480, .562                                    .5603, .8966
    10   boxes, 257x257      1,400 of 1,400     46  .829, .454                                    .5492, .8950

(From leg 4 on, pixels of objects weigh more in the loss. Leg 6 began as one of 3,000 steps and was shortened at step
1,597, leg 9 as one of 1,600 and was shortened at 306. Legs 7 to 10 ran on an AMD EPYC.) Legs 1 to 5 have features too
small for ASPP's rate of 18: its outer taps kept the values they were drawn with, which 257x257 does not show, and
321x321, with .4997, did. Leg 6 started from leg 5 with zeros there, the value at which training starts such taps
(`deeplab_jax/models/taps.py`), and halves the rates, so that every tap is used. Its boxes show objects larger than
whole images at 257x257 do. From leg 7 on the rule is AdamW, which in 300 steps gained more than SGD in the 2,600
before. Leg 9 starts from the mean of legs 7 and 8, weight by weight, and normalizes by running statistics, as
prediction does. Before leg 10 the mean of leg 9 and of what it started from had a mean IoU of .6757 on the training
images and of .5612 on val, both at 257x257, so leg 10 pastes objects of other images in, varies boxes and colors
more, listens more to the teacher, and draws anew: legs 7 to 9 had one seed and with it the same first images. The
preset `deeplab_v3_plus_efficientnet_lite0_pascalvoc` is the mean of leg 10 and of what it started from. All means were
chosen on these images:

    input                        leg 5, zeroed taps  leg 6         leg 7         leg 8         mean of 7, 8
    257x257                      .5364, .8787        .5254, .8715  .5305, .8765  .5445, .8831  .5412, .8807
    321x321, the preset's        .5485, .8868        .5538, .8847  .5620, .8889  .5577, .8917  .5669, .8924
    385x385                      .5459, .8871        .5556, .8874                .5606, .8950
    .75, 1, 1.25 of 321, flipped .5726, .8971        .5760, .8931                              .5926, .9019

    input                        leg 9         mean of it     leg 10        preset
                                               and its start
    257x257                      .5603, .8966  .5612, .8918   .5492, .8950  .5654, .8958
    321x321, the preset's        .5837, .9038  .5875, .9020   .5779, .9042  .5964, .9058
    .75, 1, 1.25 of 321, flipped               .6075, .9096                 .6100, .9111

150 steps more of SGD behind leg 6, on whole images at 321x321 and the backbone frozen, gained nothing (.5535,
.8828). A leg from leg 6 with AdamW at a rate of .0007, of 2,100 steps, was given up at step 320: its training loss had
risen from .49 to .59. Leg 9's settings at .0004 with a new seed were given up at step 320: from .49 the loss had risen
to .67 by step 200 and come down to .53.

The teacher was trained on images of 513x513, where its file scores .7202 at the images' own shape. Squeezed it has
.6844 at 385x385 and .6551 at 257x257, the size at which these legs show it images. On every seventh training image
it has .722 at 385x385 and .647 at 257x257, where the preset has .681 at 321x321: there it has nothing to teach. On 240
views of leg 10 it has .435 and, enlarged by 1.25 or 1.5, .479 and .463; the preset has .525. Three parts of 250 steps
from the preset tried what to do about it, with AdamW at .0002, averages at .99 and seed 11, scored at 321x321:

    views, teacher's share                                            mean IoU, accuracy  mean with the preset
    leg 10's, none                                                    .5785, .8921        .5937, .9007
    boxes of .6 - 1, nothing pasted, .7 at `teacher_scales=(1.5,)`    .5852, .9056        .5945, .9066
    the same, all, every pixel alike                                  .5670, .9028        .5871, .9056

The mean of the preset and the first two has .5977, .9040: not shipped, for 449 images do not tell it from the preset.
"""

from deeplab_jax.config import load_config, parse_stage


def _weights(objects, hard=None):
    """What a pixel counts beside one of the background, where it shows an object, and one of a hard class.

    Hard are bicycles, bottles, chairs, potted plants and sofas: after leg 5 their IoU is below .5 on the images that
    were learned from.
    """
    return (1.0, *(hard if hard and label in (2, 5, 9, 16, 18) else objects for label in range(1, 21)))


# Rates are of the head; `backbone` is the backbone's share of them.
_COMMON = {
    "init": "",
    "teacher": "",
    "size": 193,
    "batch": 8,
    "resize": "scale_crop",
    "scale_range": (0.4, 1.1),
    "color_jitter": 0.3,
    "paste_classes": (),
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
    "scale_range": (0.4, 1.0), "color_jitter": 0.4, "paste_classes": tuple(range(1, 21)), "teacher_weight": 0.85,
    "steps": 1400, "seed": 10,
}  # fmt: skip
_STAGES = {leg: _COMMON | changes for leg, changes in _CHANGES.items()}


def get_config(arg=None):
    """Arguments: `leg`, `teacher` and `init` (presets or folders), `size` (of the input), `batch`, `steps`, `rate`."""
    leg = parse_stage(arg, _STAGES, settable=("teacher", "init", "size", "batch", "steps", "rate"))
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=leg.size, batch=leg.batch, steps=leg.steps, rate=leg.rate, init=leg.init,
    )  # fmt: skip

    config.model.atrous_rates = leg.atrous_rates
    config.model.freeze_norm_statistics = leg.freeze_norm_statistics
    config.data.resize = leg.resize
    config.data.scale_range = leg.scale_range
    config.data.scale_step = 0.0
    config.data.color_jitter = leg.color_jitter
    config.data.paste_classes = leg.paste_classes
    config.data.repeat_threshold = 0.15

    config.optimizer.name = leg.optimizer
    if leg.optimizer == "adam":  # AdamW
        config.optimizer.nesterov = False
        config.optimizer.weight_decay = 0.01
        config.optimizer.weight_decay_rule = "decoupled_all"
    config.optimizer.learning_rate_multipliers.backbone = leg.backbone
    config.optimizer.frozen = leg.frozen
    config.train.ema_decay = leg.ema_decay
    config.train.seed = leg.seed
    config.loss.class_weights = leg.class_weights
    config.loss.teacher = leg.teacher or None
    config.loss.teacher_weight = leg.teacher_weight
    config.checkpoint.every = "5%"
    return config
