"""SegFormer B0 to B5 on Cityscapes with the recipe of the paper (arXiv 2105.15203, section 4.1; NVlabs/SegFormer).

    deeplab-jax data prepare cityscapes --source cityscapes --data-dir data
    deeplab-jax train --config segformer_cityscapes:variant=b2 --config.data.data_dir=data --workdir runs/segformer_b2

The source folder has `leftImg8bit/` and `gtFine/`, as the archives unpack. `init` starts from a Mix Transformer that
was trained on ImageNet, as the paper does.

Published mean IoU on val, single scale: B0 .762, B1 .785, B2 .810, B3 .817, B4 .823, B5 .824, from windows of 1024x1024
every 768 pixels (`eval.protocol=windows`); this config scores whole images, which is faster. See `segformer_ade20k` for
the differences in training.

Data: Cityscapes train, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `variant` (b0 to b5), `size` (of the square crop), `batch`, `steps`, `init` (a network)."""
    arg = parse_arg(arg, variant="b0", size=1024, batch=8, steps=160_000, init="")
    config = load_config(
        "segformer_ade20k", variant=arg.variant, size=arg.size, batch=arg.batch, steps=arg.steps, init=arg.init
    )
    config.data.name = "cityscapes"
    config.eval.update(protocol="whole", scale_to=None, size_multiple=1)
    config.eval.image_size = (1024, 2048)
    return config
