"""SegFormer B0 to B5 on Pascal VOC 2012 with the recipe that the paper has for ADE20K (arXiv 2105.15203).

    deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
    deeplab-jax train --config segformer_voc:variant=b2 --workdir runs/segformer_b2

`init` starts from a Mix Transformer that was trained on ImageNet. The paper has no score for this data set; the 40,000
steps are ours: 60 epochs. See `segformer_ade20k` for the differences in training.

Data: Pascal VOC 2012 trainaug, val
Score: not run
"""

from deeplab_jax.config import load_config, parse_arg


def get_config(arg=None):
    """Arguments: `variant` (b0 to b5), `size` (of the square crop), `batch`, `steps`, `init` (a network)."""
    arg = parse_arg(arg, variant="b0", size=512, batch=16, steps=40_000, init="")
    config = load_config(
        "segformer_ade20k", variant=arg.variant, size=arg.size, batch=arg.batch, steps=arg.steps, init=arg.init
    )
    config.data.name = "voc2012_segmentation"
    config.data.train_split = "trainaug"
    config.eval.update(protocol="whole", scale_to=None, size_multiple=1)
    config.eval.image_size = (512, 512)
    return config
