"""The guide "Semantic Segmentation with KerasCV", reproduced exactly: model, data, optimizer, loss and metric.

    deeplab-jax data prepare sbd
    deeplab-jax train --config kerascv_guide --config.train.init_from=resnet50_v2_imagenet --workdir runs/kerascv_guide

The guide starts from ImageNet weights and publishes, after one epoch: validation accuracy .7768, loss .8223, mean IoU
.1593 (319 ms per step on an unnamed GPU). Without `train.init_from` the run starts from random weights.

Data: SBD train, val
Score: not run at full size; `kerascv_guide:size=256,batch=4,steps=400` from random weights on 3,174 images of VOC and
  SBD has mean IoU .0356 on 449 of VOC val (predicting background everywhere: .0352)
Hardware: two shared cores of an AMD EPYC, 43 minutes, for the small run
Commit: 1aa7923
"""

from deeplab_jax.config import base_config, parse_arg


def get_config(arg=None):
    """Arguments for smaller machines: `size` (of the square input), `batch`, `steps`. The rate follows the batch."""
    arg = parse_arg(arg, size=512, batch=4, steps=2124)
    config = base_config()

    config.model.backbone = "resnet50_v2_kerascv"
    config.model.output_stride = 32
    config.model.atrous_rates = (6, 12, 18)
    config.model.atrous_rates_stride = 32  # not scaled with the output stride
    config.model.decoder = "kerascv"
    config.model.classifier_bias = False
    config.model.kernel_init = "glorot_uniform"
    config.model.backbone_norm_epsilon = 1.001e-5
    config.model.backbone_norm_decay = 0.99
    config.model.head_norm_epsilon = 1e-3
    config.model.head_norm_decay = 0.99
    config.model.padding = "same_upper"
    config.model.input_mean = (0.0, 0.0, 0.0)
    config.model.input_std = (255.0, 255.0, 255.0)

    config.data.name = "sbd"
    config.data.image_size = (arg.size, arg.size)
    config.data.batch_size = arg.batch
    config.data.resize = "squeeze"
    config.data.random_flip = "horizontal"

    config.train.duration = f"{arg.steps} steps"
    config.optimizer.learning_rate = 0.007 * arg.batch / 16
    config.optimizer.schedule = "cosine"
    config.optimizer.momentum = 0.9
    config.optimizer.momentum_rule = "keras"
    config.optimizer.clip = "per_variable"
    config.optimizer.clip_norm = 10.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rule = "decoupled_all"
    config.loss.terms = "keras_cross_entropy"
    config.eval.protocol = "guide"
    config.eval.ignored_pixels = "background"
    return config
