"""SegFormer B0 to B5 on ADE20K with the recipe of the paper (arXiv 2105.15203, section 4.1; NVlabs/SegFormer).

    deeplab-jax data prepare ade20k --source ADEChallengeData2016 --data-dir data
    deeplab-jax train --config segformer_ade20k:variant=b2 --config.data.data_dir=data --workdir runs/segformer_b2

`init` starts from a Mix Transformer that was trained on ImageNet, as the paper does.

Published mean IoU on val, single scale: B0 .374, B1 .422, B2 .465, B3 .494, B4 .503, B5 .510, under the protocol that
this config evaluates with. The original also decays biases; its rate falls during the warm-up too.

Data: ADE20K train, val
Score: not run
"""

from deeplab_jax.config import base_config, parse_arg

_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")


def get_config(arg=None):
    """Arguments: `variant` (b0 to b5), `size` (of the crop; 0: 640 for b5, else 512), `batch`, `steps`, `init`."""
    arg = parse_arg(arg, {"variant": _VARIANTS}, variant="b0", size=0, batch=16, steps=160_000, init="")
    size = arg.size or (640 if arg.variant == "b5" else 512)
    config = base_config()

    config.model.backbone = f"mit_{arg.variant}"
    config.model.head = "segformer"
    config.model.output_stride = 32
    config.model.drop_path = 0.1
    config.model.decoder_channels = 256 if arg.variant in ("b0", "b1") else 768
    config.model.classifier_dropout = 0.1
    config.train.init_from = arg.init or None

    config.data.name = "ade20k"
    config.data.image_size = (size, size)
    config.data.batch_size = arg.batch
    config.data.resize = "scale_crop"
    config.data.scale_range = (0.5, 2.0)
    config.data.scale_step = 0.0
    config.data.short_side = size
    config.data.max_long_side = 2048
    config.data.cat_max_ratio = 0.75
    config.data.random_flip = "horizontal"
    config.data.photometric_distortion = True

    config.train.duration = f"{arg.steps} steps"
    config.optimizer.name = "adam"  # AdamW
    config.optimizer.learning_rate = 6e-5
    config.optimizer.learning_rate_multipliers.decoder = 10.0
    config.optimizer.learning_rate_multipliers.classifier = 10.0
    config.optimizer.schedule = "poly"
    config.optimizer.poly_power = 1.0
    config.optimizer.warmup = "1500 steps"
    config.optimizer.weight_decay = 0.01
    config.optimizer.weight_decay_rule = "decoupled_kernels"

    config.eval.protocol = "keep_ratio"
    config.eval.scale_to = (size, 2048)
    config.eval.size_multiple = 32
    config.eval.batch_size = 8
    config.eval.every = "10%"
    config.checkpoint.every = "1000 steps"
    config.log.every_steps = 50
    return config
