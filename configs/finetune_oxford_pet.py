"""Fine-tunes the network that ships with the package on Oxford-IIIT Pet: pets, background and outlines.

    deeplab-jax data prepare oxford_pet --data-dir data
    deeplab-jax train --config finetune_oxford_pet --config.data.data_dir=data --workdir runs/pets

`data=oxford_pet_binary` counts outlines as pets, and `data=oxford_pet_ignore` ignores them. See `finetune_folder` for
the recipe; 10 epochs are 9,200 steps of four crops.

Data: Oxford-IIIT Pet trainval, test
Score: not run
"""

from deeplab_jax import pretrained
from deeplab_jax.config import load_config, parse_arg

_DATA_SETS = ("oxford_pet", "oxford_pet_binary", "oxford_pet_ignore")


def get_config(arg=None):
    """Arguments: `data`, `size` (of the crop), `batch`, `epochs`, `rate` (peak), `init` (a network)."""
    arg = parse_arg(
        arg,
        {"data": _DATA_SETS},
        data="oxford_pet",
        size=321,
        batch=4,
        epochs=10.0,
        rate=0.0,
        init=pretrained.DEFAULT_PRESET,
    )
    config = load_config(
        "finetune_folder", size=arg.size, batch=arg.batch, epochs=arg.epochs, rate=arg.rate, init=arg.init
    )
    config.data.name = arg.data
    config.data.train_split, config.data.eval_split = "trainval", "test"
    # The test split is scored once, at the end, and chooses nothing.
    config.eval.before_training, config.eval.every = False, None
    config.checkpoint.use = "newest"
    return config
