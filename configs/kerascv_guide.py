"""The KerasCV guide "Semantic Segmentation with KerasCV" to the letter: model, data, optimizer, loss, metric.

    deeplab-jax data prepare sbd
    deeplab-jax train --config kerascv_guide --workdir runs/kerascv_guide

The guide starts from ImageNet weights and publishes, after its one epoch: validation accuracy .7768, loss .8223, mean
IoU .1593 (319 ms a step on one unnamed GPU). `--config.train.init_from=resnet50_v2_imagenet` starts from KerasCV's
ImageNet weights too; without it the run starts from random weights.
The whole run was not made here. A small one was: `kerascv_guide:size=256,batch=4,steps=400` from random weights, on
3,174 VOC and SBD images, scored on 449 of VOC's val. The training loss fell from 3.27 to 1.13; mean IoU .0356, where
calling everything background gets .0352 (median 5.4 s a step, 43 minutes on two AMD EPYC cores shared with other
work).
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
    config.loss.name = "keras"
    config.eval.protocol = "guide"
    config.eval.ignored_pixels = "background"
    return config
