"""The fields of `config.data`: the data set, its augmentation, and how it is read."""

from deeplab_jax.config import ranges
from deeplab_jax.config.field import Field, Need

#: Fields by name.
DATA = {
    "name": Field(None, "name of a registered data set", value_type=str),
    "data_dir": Field(
        None, "folder of prepared data sets (default: `$DEEPLAB_JAX_DATA`, or `~/deeplab_jax_data`)", value_type=str
    ),
    "train_split": Field("train", "split to train on; join several splits of a prepared data set with `+`"),
    "eval_split": Field("val", "split to evaluate on"),
    "batch_size": Field(None, "global batch size, over all devices and processes", value_type=int, range=ranges.COUNT),
    "image_size": Field(None, "(height, width) of the training images", value_type=tuple, range=ranges.SIDE),
    "resize": Field(
        "squeeze",
        "how an image becomes `image_size`",
        {
            "squeeze": "resize it, ignoring its aspect ratio",
            "scale_crop": "scale it by a random factor, pad it, and cut a random window (the papers)",
            "resized_crop": "cut a random box and resize the box",
        },
    ),
    "antialias": Field(
        False, "resize images with Pillow, which averages pixels when it shrinks them; OpenCV, the default, does not"
    ),
    "scale_range": Field(
        (0.5, 2.0),
        "range of `scale_crop`'s factor, or of `resized_crop`'s share of each side (at most 1)",
        range=ranges.AT_LEAST_ZERO,
        need=Need("data.resize", ("scale_crop", "resized_crop")),
    ),
    "scale_step": Field(
        0.25,
        "step between `scale_crop`'s factors; 0 draws from the continuous range",
        range=ranges.AT_LEAST_ZERO,
        need=Need("data.resize", ("scale_crop",)),
    ),
    "short_side": Field(
        0,
        "length of the shorter side at `scale_crop`'s factor 1; 0 keeps the size of the image",
        range=ranges.SIDE_OR_ZERO,
        need=Need("data.resize", ("scale_crop",)),
    ),
    "max_long_side": Field(
        0,
        "longest side that `short_side` may lead to at factor 1; 0 does not limit it",
        range=ranges.SIDE_OR_ZERO,
        need=Need("data.resize", ("scale_crop",)),
    ),
    "cat_max_ratio": Field(
        1.0,
        "`scale_crop` cuts another window, up to ten times, while one class covers at least this share of its labeled "
        "pixels; 1 takes the first window",
        range=ranges.SHARE,
        need=Need("data.resize", ("scale_crop",)),
    ),
    "random_rotation": Field(
        0.0, "rotate half of the images by a random angle of up to this many degrees", range=ranges.ANGLE
    ),
    "random_flip": Field("horizontal", "mirror images at random", ("none", "horizontal", "horizontal_and_vertical")),
    "color_jitter": Field(
        0.0,
        "scale brightness, contrast and saturation by random factors between 1 - this and 1 + this",
        range=ranges.BELOW_ONE,
    ),
    "photometric_distortion": Field(
        False, "distort brightness, contrast, saturation and hue as SSD and MMSegmentation do"
    ),
    "display_channels": Field(
        (),
        "channels to draw as red, green and blue in galleries and overlays, counted from 0 (default: the first three, "
        "or the first as gray)",
        range=ranges.COUNT_OR_ZERO,
    ),
    "random_blur": Field(
        0.0,
        "blur half of the images with a Gaussian whose standard deviation is at most this many pixels",
        range=ranges.SIGMA,
    ),
    "transform": Field(
        None,
        "function of your own that sees each image and label first: `module:function`, or a registered name",
        value_type=str,
    ),
    "copy_paste_classes": Field(
        (), "paste the pixels of these classes from one example onto another (Copy-Paste)", range=ranges.COUNT_OR_ZERO
    ),
    "copy_paste_share": Field(
        0.5, "fraction of examples to paste onto", range=ranges.FRACTION, need=Need("data.copy_paste_classes")
    ),
    "repeat_threshold": Field(
        0.0,
        "oversample images with classes that appear in fewer than this fraction of images; 0 disables",
        range=ranges.FRACTION,
    ),
    "repeat_classes": Field(
        (), "oversample images that contain any of these classes, such as hard ones", range=ranges.COUNT_OR_ZERO
    ),
    "repeat_factor": Field(
        2.0,
        "times that an image with one of `repeat_classes` appears per pass",
        range=ranges.AT_LEAST_ONE,
        need=Need("data.repeat_classes"),
    ),
    "workers": Field(
        0, "worker processes that read and transform; 0 uses threads of the main process", range=ranges.WORKERS
    ),
    "unreadable": Field(
        "raise",
        "how to treat an example that cannot be read",
        {"raise": "stop with an error", "skip": "count it and take the next one"},
    ),
    "num_examples": Field(
        None, "number of training examples of a generated data set", value_type=int, range=ranges.COUNT
    ),
}
