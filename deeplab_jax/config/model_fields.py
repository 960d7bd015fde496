"""The fields of `config.model`: the network."""

from deeplab_jax.config import ranges
from deeplab_jax.config.field import Field, Need

#: Fields by name.
MODEL = {
    "backbone": Field(None, "name of a registered backbone", value_type=str),
    "head": Field(
        "deeplab",
        "the part between the backbone and the classifier",
        {
            "deeplab": "ASPP, and a decoder unless `decoder` is `none` (DeepLabv3, DeepLabv3+)",
            "segformer": "projections of four stages, added up at stride 4 (SegFormer)",
            "lraspp": "a gated projection and a skip connection at stride 8 (MobileNetV3)",
        },
    ),
    "width_multiplier": Field(1.0, "factor on the channels of `mobilenet_v2`", range=ranges.WIDTH),
    "in_channels": Field(
        3,
        "channels of the input images; training on a prepared data set with its own channels sets it",
        range=ranges.CHANNELS,
    ),
    "value_range": Field(
        (0, 255),
        "values of the images that the network sees as 0 and 255; training on a prepared data set with its own values "
        "sets it",
        range=ranges.FINITE,
    ),
    "output_stride": Field(
        16,
        "input size divided by feature size; smaller strides use atrous convolutions",
        (8, 16, 32, 64, 128, 256),
    ),
    "multi_grid": Field(
        (),
        "rate multipliers of the units in the backbone's last stage, or of the three convolutions in Xception's last "
        "unit; empty means all ones",
        range=ranges.RATE,
    ),
    "spread_converted_units": Field(
        False, "apply a converted stage's new rate to its first unit too, as segmentation_models.pytorch does"
    ),
    "cascade_blocks": Field(
        0,
        "copies of a ResNet's last stage that follow it, each with a stride of 2 (arXiv 1706.05587, section 3.2)",
        (0, 1, 2, 3),
    ),
    "drop_path": Field(
        0.0,
        "share of examples that skip the residual branches of `mit`'s last block in training; it rises linearly from "
        "0 in the first block",
        range=ranges.BELOW_ONE,
    ),
    "layer_norm_epsilons": Field(
        (1e-6, 1e-6, 1e-5, 1e-5),
        "epsilons of `mit`'s LayerNorm: in blocks, after stages, after patch embeddings, and in reduced attention",
        range=ranges.ABOVE_ZERO,
    ),
    "gelu": Field(
        "exact", "GELU of `mit`", {"exact": "with the error function", "tanh": "the approximation that Keras uses"}
    ),
    "aspp": Field(
        "parallel",
        "the module between the backbone and the decoder",
        {
            "parallel": "atrous spatial pyramid pooling (arXiv 1706.05587, section 3.3)",
            "dpc": "the dense prediction cell of arXiv 1809.04184, which has its own rates and no image pooling",
            "none": "none: the decoder, or the classifier, takes the backbone's features (section 3.2)",
        },
    ),
    "atrous_rates": Field((6, 12, 18), "rates of ASPP's 3x3 branches at `atrous_rates_stride`", range=ranges.RATE),
    "atrous_rates_stride": Field(
        16,
        "output stride that `atrous_rates` are stated for; they scale with the actual output stride",
        range=ranges.RATE,
    ),
    "aspp_channels": Field(256, "channels of each ASPP branch and of ASPP's output", range=ranges.CHANNELS),
    "aspp_projection_size": Field(
        1, "kernel size of the convolution that joins ASPP's branches; 3 is MMSegmentation's", (1, 3)
    ),
    "aspp_separable": Field(False, "use depthwise separable convolutions in ASPP's 3x3 branches"),
    "separable_norm": Field(True, "BatchNorm and ReLU between the depthwise and the pointwise convolution"),
    "image_pooling": Field(True, "add ASPP's image-level branch"),
    "image_pooling_window": Field(
        (),
        "(height, width) of the windows of image-level pooling, in pixels of the image; empty pools the whole image",
        range=ranges.SIDE,
        need=Need("model.image_pooling"),
    ),
    "image_pooling_stride": Field(
        (1, 1),
        "strides of the windows of image-level pooling, in pixels of the features",
        range=ranges.SIDE,
        need=Need("model.image_pooling_window"),
    ),
    "lraspp_gate": Field(
        "sigmoid",
        "the gate of the head `lraspp`",
        {"sigmoid": "without a bias (torchvision)", "hard_sigmoid": "with a bias (research/deeplab)"},
        need=Need("model.head", ("lraspp",)),
    ),
    "aspp_dropout": Field(0.0, "dropout rate after ASPP", range=ranges.BELOW_ONE),
    "decoder": Field(
        "paper",
        "decoder style, named after the paper or project it follows",
        {
            "paper": "3x3 convolutions (arXiv 1802.02611, table 2)",
            "separable": "the same, depthwise separable (research/deeplab)",
            "kerascv": "one 1x1 convolution (KerasCV)",
            "torchvision": "one 3x3 convolution, no low-level features (torchvision's DeepLabv3 head)",
            "smp": "one separable 3x3 convolution before and one after the concatenation (segmentation_models.pytorch)",
            "none": "no decoder: DeepLabv3",
        },
    ),
    "decoder_channels": Field(256, "channels of the decoder's convolutions", range=ranges.CHANNELS),
    "decoder_convs": Field(
        2, "3x3 convolutions after each concatenation in the decoders `paper` and `separable`", (1, 2, 3)
    ),
    "low_level_channels": Field(
        48, "channels to which the decoder projects each of the backbone's low-level features", range=ranges.CHANNELS
    ),
    "low_level_strides": Field(
        (4,),
        "strides of the low-level features that the decoders `paper` and `separable` join, the finest last to join",
        {(4,): "stride 4 (Conv2 in arXiv 1802.02611)", (4, 8): "stride 8, then stride 4 (Conv3 and Conv2, table 2)"},
    ),
    "classifier_bias": Field(True, "add a bias to the last convolution"),
    "classifier_dropout": Field(
        0.0, "dropout rate of whole channels before the last convolution", range=ranges.BELOW_ONE
    ),
    "auxiliary_channels": Field(
        0,
        "channels of the auxiliary head, a second classifier that only training computes; 0 for none",
        range=ranges.COUNT_OR_ZERO,
    ),
    "auxiliary_features": Field(
        "stage3", "endpoint of the backbone that the auxiliary head classifies", need=Need("model.auxiliary_channels")
    ),
    "auxiliary_dropout": Field(
        0.1, "dropout rate of the auxiliary head", range=ranges.BELOW_ONE, need=Need("model.auxiliary_channels")
    ),
    "kernel_init": Field(
        "he_normal", "initializer of convolution kernels", {"he_normal": "PyTorch", "glorot_uniform": "Keras"}
    ),
    "zero_unreached_taps": Field(
        False,
        "start kernel taps at zero if they only see padding at `data.image_size`; helps when evaluating larger images "
        "than the network trained on",
    ),
    "backbone_norm_epsilon": Field(1e-5, "epsilon of the backbone's BatchNorm", range=ranges.ABOVE_ZERO),
    "backbone_norm_decay": Field(
        0.9,
        "decay of the backbone's running statistics: `decay * running + (1 - decay) * batch`",
        range=ranges.FRACTION,
    ),
    "head_norm_epsilon": Field(1e-5, "epsilon of BatchNorm in ASPP and the decoder", range=ranges.ABOVE_ZERO),
    "head_norm_decay": Field(0.9, "decay of the running statistics in ASPP and the decoder", range=ranges.FRACTION),
    "freeze_norm_statistics": Field(False, "use BatchNorm's running statistics during training too"),
    "padding": Field(
        "symmetric",
        "padding of strided convolutions",
        {"symmetric": "PyTorch and the papers", "same_upper": "TensorFlow's SAME"},
    ),
    "align_corners": Field(False, "resize with aligned corners instead of half-pixel centers"),
    "input_mean": Field(
        (123.675, 116.28, 103.53),
        "mean subtracted from images of range 0-255 (see `value_range`), per channel",
        range=ranges.FINITE,
    ),
    "input_std": Field(
        (58.395, 57.12, 57.375),
        "standard deviation that centered images are divided by, per channel",
        range=ranges.DIVISOR,
    ),
}
