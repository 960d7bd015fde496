# ---
# jupyter:
#   jupytext:
#     cell_markers: '"""'
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# The papers' tables

This notebook maps the rows of the tables of DeepLabv3 ([arXiv 1706.05587](https://arxiv.org/abs/1706.05587)) and
DeepLabv3+ ([arXiv 1802.02611](https://arxiv.org/abs/1802.02611)) to configs. It shows what output stride, multi-grid
and the decoder do to the model, counts multiply-adds, and evaluates one checkpoint at another output stride, flipped,
and at several scales.

The notebook runs in two to three minutes on two CPU cores. It needs no GPU and no download.

It has three kinds of numbers. *Published* numbers are the papers', with the number of the table. *Counted* numbers
are multiply-adds of the full-size models, counted exactly. *Measured* numbers are scores of two small models that
this notebook trains on synthetic scenes; they say nothing about Pascal VOC.

## Setup
"""

# %%
import logging
import math
import pathlib
import shlex
import sys
import tempfile
from collections import Counter

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

import deeplab_jax
from deeplab_jax import config as config_lib
from deeplab_jax import visualization
from deeplab_jax.analysis.summary import summary_table
from deeplab_jax.cli.config_flags import parse_config
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.parallel.jaxpr import equations

matplotlib.rcParams["savefig.dpi"] = 80  # small images for a small notebook
console = Console(width=120, force_jupyter=False, force_terminal=False, no_color=True)  # prints tables as text

# The library reports with `logging`. Show its messages here, and only here.
logger = logging.getLogger("deeplab_jax")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.propagate = False


def show(title, columns, rows):
    """Prints a table. All columns except the first are aligned to the right."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


# %% [markdown]
"""
## 1. A row is a config

Table 3 of DeepLabv3+ has ResNet-101 trained at output stride 16 with the decoder: 78.85 mean IoU on the validation
split of Pascal VOC 2012. This is the config of that row. Its fields are those of the papers' protocol.
"""

# %%
config = deeplab_jax.load_config("deeplabv3plus_resnet101_voc")
for field in ("backbone", "output_stride", "multi_grid", "atrous_rates", "image_pooling", "decoder", "align_corners"):
    print(f"config.model.{field:20}{config.model[field]}")
for field in ("train_split", "image_size", "batch_size", "resize", "scale_range"):
    print(f"config.data.{field:21}{config.data[field]}")
for field in ("learning_rate", "schedule", "poly_power", "momentum", "weight_decay"):
    print(f"config.optimizer.{field:16}{config.optimizer[field]}")
print(f"config.train.{'duration':20}{config.train.duration}")

console.print(summary_table(config, num_classes=21))

# %% [markdown]
"""
*Nominal* counts the layers in the order of the papers, *executed* in the order of this package, which computes 1x1
convolutions before upsampling. `deeplab_jax.load_config("deeplabv3plus_resnet50_voc")` is the same with 50 layers;
its argument `backbone` selects any other.

The other rows are this config with other values. Three fields change the model:

- `model.output_stride`: 32, 16 or 8. The backbone stops shrinking the image at this stride. From there on its
  convolutions are dilated by a *rate*, with the same parameters.
- `model.multi_grid`: factors on the rates of the three units of the last stage.
- `model.decoder`: `paper` is DeepLabv3+, `none` is DeepLabv3.

The next cell traces the model, which computes nothing, and reads the rates and the multiply-adds of its convolutions
from the traced program. It counts in two ways, which section 2 explains.
"""


# %%
def count(size=513, **fields):
    """Returns the rates of dilated convolutions by layer, and two counts of multiply-adds in 10^9: plain and padded."""
    model = build_model(config.model, 21, **fields, published_order=True)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    program = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False)[0])
    rates, plain, padded = {}, 0, 0
    for path, equation in equations(program(variables_of(fields.get("decoder", "paper")), images).jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        spec, rate = equation.params["dimension_numbers"], equation.params["rhs_dilation"][0]
        kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        per_pixel = math.prod(kernel)  # height x width x input features x output features
        height, width = (output[axis] for axis in spec.out_spec[2:])
        plain += per_pixel * height * width
        if rate > 1:
            rates[path] = rate
            height, width = (math.ceil((extent + 2 * rate) / rate) * rate - 2 * rate for extent in (height, width))
        padded += per_pixel * height * width
    return rates, plain / 1e9, padded / 1e9


shapes = {}


def variables_of(decoder):
    """Returns the shapes of the variables, which do not depend on the stride."""
    if decoder not in shapes:
        shapes[decoder] = abstract_variables(build_model(config.model, 21, decoder=decoder))
    return shapes[decoder]


counts = {(decoder, stride): count(decoder=decoder, output_stride=stride)
          for decoder in ("none", "paper") for stride in (32, 16, 8)}  # fmt: skip

rows = []
for stride in (32, 16, 8):
    rates = Counter()
    for path, rate in counts["paper", stride][0].items():
        part = next(name for name in ("stage3", "stage4", "aspp") if name in path)
        rates[part, rate] += 1
    cells = [", ".join(f"{n} x {r}" if n > 1 else f"{r}" for (p, r), n in rates.items() if p == part)
             for part in ("stage3", "stage4", "aspp")]  # fmt: skip
    rows.append((stride, *cells))
show("Rates above 1 with multi-grid (1, 2, 4)", ("output stride", "block 3", "block 4", "ASPP"), rows)

# %% [markdown]
"""
The figure shows these rates. Each dot is a feature that one output sees, on the 33x33 features of a 513x513 image at
stride 16: the three convolutions of block 4 one by one, then the four convolution branches of ASPP. At rate 18, only
the center tap falls on the features.
"""

# %%
figure = visualization.new_figure(9, 2.2)
figure.set_layout_engine("constrained")
stage4, aspp = ([rate for path, rate in counts["paper", 16][0].items() if part in path] for part in ("stage4", "aspp"))
taps = [(f"block 4, unit {unit}", [rate]) for unit, rate in enumerate(stage4, 1)] + [("ASPP", [0, *aspp])]
for axes, (title, rates) in zip(figure.subplots(1, len(taps)), taps, strict=True):
    for number, rate in enumerate(rates):
        places = 16 + rate * np.array([-1, 0, 1])
        axes.plot(*(grid.ravel() for grid in np.meshgrid(places, places)), "o", ms=4, color=f"C{number}")
    axes.set(xlim=(-1, 33), ylim=(33, -1), xticks=(), yticks=(), aspect="equal")
    axes.set_title(f"{title}: rate {', '.join(str(max(rate, 1)) for rate in rates)}", fontsize=8)
figure

# %% [markdown]
"""
At stride 32, only the multi-grid dilates block 4. At 16, its convolutions replace one stride of 2, so the rates
double. At 8, block 3 replaces another stride. ASPP's rates are stated for stride 16 and scale with it; the paper
doubles them at 8.

## 2. Multiply-adds, counted and published

The published column is table 3 of DeepLabv3+ (513x513 pixels). *Plain* counts one multiply-add per weight and output
pixel, the definition of a convolution.
"""

# %%
PUBLISHED = {("none", 32): 52.43, ("none", 16): 81.02, ("none", 8): 276.18,
             ("paper", 32): 74.20, ("paper", 16): 101.28, ("paper", 8): 297.92}  # fmt: skip

rows = [
    (f"decoder {decoder}, stride {stride}", published, f"{plain:.2f}", f"{100 * (plain / published - 1):+.1f} %",
     f"{padded:.2f}", f"{100 * (padded / published - 1):+.1f} %")
    for ((decoder, stride), published), (_, plain, padded) in zip(PUBLISHED.items(), counts.values(), strict=True)
]  # fmt: skip
show("10^9 multiply-adds, ResNet-101", ("", "published", "plain", "", "padded", ""), rows)

# %% [markdown]
"""
The plain count is below the published one, and the gap grows with the number of dilated convolutions. The reason is
how TensorFlow computes them: `tf.nn.with_space_to_batch` splits a feature map into rate x rate maps, one per
remainder, and pads height and width to multiples of the rate (see its
[documentation](https://www.tensorflow.org/api_docs/python/tf/nn/with_space_to_batch)). *Padded* also counts the work
on that padding, and is within half a percent of five of the six rows.

The sixth row, stride 16 with the decoder, is lower than this count. At the other two strides, the published cost of
the decoder is 21.74 and 21.77, as it is here; at 16 it is 20.26. The paper's number for six scales, below, agrees
with the count again. The papers do not say how they counted, so this explanation is a deduction.

Six scales (0.5, 0.75, 1, 1.25, 1.5 and 1.75) cost the sum of six images, and flipping doubles it.
"""

# %%
image_sizes = [round(512 * scale) + 1 for scale in (0.5, 0.75, 1, 1.25, 1.5, 1.75)]
totals = np.sum([count(size, decoder="paper", output_stride=16)[1:] for size in image_sizes], axis=0)
rows = [("16, six scales", 898.69, *(f"{total:.2f}" for total in totals)),
        ("16, six scales, flipped", 1797.23, *(f"{2 * total:.2f}" for total in totals))]  # fmt: skip
show("10^9 multiply-adds, ResNet-101 with decoder", ("stride", "published", "plain", "padded"), rows)

# %% [markdown]
"""
## 3. Measured on small models

The parameters do not depend on the output stride, so a model trained at 16 can be evaluated at 8: the same weights on
a grid twice as fine. The papers do this in half of their rows, and also average the probabilities over several scales
and flipped images. All of this is part of the evaluation config.

This section trains two small models, one without a decoder (DeepLabv3) and one with it (DeepLabv3+), on 65x65 scenes.
As 513 does for stride 16, 65 = 4 x 16 + 1 makes the corners of features and images coincide at every stride, with
`align_corners`.
"""


# %%
def small_config(decoder):
    """Returns the config of a small model at output stride 16."""
    small = deeplab_jax.load_config("quickstart", steps=300, size=65)
    small.model.decoder = decoder
    small.model.output_stride = 16
    small.model.atrous_rates = (1, 2)
    small.model.align_corners = True
    small.optimizer.schedule = "poly"
    small.optimizer.learning_rate = 0.3
    small.data.batch_size = 8
    small.eval.protocol = "whole"
    small.eval.image_size = (65, 65)
    small.log.tensorboard = False
    small.log.every_steps = 100
    return small


folder = pathlib.Path(tempfile.mkdtemp())
trained = {decoder: deeplab_jax.train(small_config(decoder), folder / decoder) for decoder in ("none", "paper")}

# %% [markdown]
"""
Each of the other rows below is one evaluation of the DeepLabv3+ checkpoint on the same 200 scenes. In a shell, the
fourth row is `deeplab-jax evaluate --workdir runs/small --config.model.output_stride=8`.
"""


# %%
def evaluate(**fields):
    """Evaluates the DeepLabv3+ checkpoint with other fields."""
    changed = small_config("paper")
    changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return deeplab_jax.evaluate(folder / "paper", config=changed)


measured = {
    "DeepLabv3, no decoder": trained["none"],
    "DeepLabv3+, decoder": trained["paper"],
    "DeepLabv3+, flipped too": evaluate(eval__flip=True),
    "DeepLabv3+, evaluated at stride 8": evaluate(model__output_stride=8),
    "DeepLabv3+, scales 0.75, 1, 1.25": evaluate(eval__scales=(0.75, 1.0, 1.25)),
}
rows = [(name, f"{100 * scores['mean_iou']:.2f}", f"{100 * scores['pixel_accuracy']:.2f}")
        for name, scores in measured.items()]  # fmt: skip
show("Measured on synthetic scenes, percent", ("", "mean IoU", "accuracy"), rows)

# %% [markdown]
"""
The decoder helps, and so do flipped images. A finer stride and several scales help at the size of the papers, but not
here. At stride 16, a scene has only 5x5 features, and the two ASPP rates were trained for that grid. And a model that
saw each scene at one scale meets textures of other sizes at other scales, while texture is part of what determines a
class; the papers train with random scales from 0.5 to 2. The models are small, trained for 300 steps with one seed,
so differences of a few tenths of a percent mean little.

## 4. Published rows and their configs

All rows are for ResNet-101 on Pascal VOC 2012 `val`, trained on `trainaug` from ImageNet weights. The scores are the
papers': these rows were not run here. The cell applies the overrides of each row and checks that they form a valid
config. *Pooling* is ASPP's image pooling, *grid* is the multi-grid. The config has both, with (1, 2, 4).
"""

# %%
SIX = "--config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)'"
FLIP = "--config.eval.flip=True"
V3 = "--config.model.decoder=none"
ROWS = [  # table, row, published mean IoU, overrides of the training, further overrides of the evaluation
    ("v3 T5", "no pooling, grid (1,1,1)", 75.36,
     f"{V3} --config.model.image_pooling=False --config.model.multi_grid='(1,1,1)'", ""),
    ("v3 T5", "no pooling, grid (1,2,1)", 75.93,
     f"{V3} --config.model.image_pooling=False --config.model.multi_grid='(1,2,1)'", ""),
    ("v3 T5", "no pooling, grid (1,2,4)", 76.58, f"{V3} --config.model.image_pooling=False", ""),
    ("v3 T5", "and a branch of rate 24", 76.46,
     f"{V3} --config.model.image_pooling=False --config.model.atrous_rates='(6,12,18,24)'", ""),
    ("v3 T6", "DeepLabv3, stride 16", 77.21, V3, ""),
    ("v3 T6", "evaluated at 8", 78.51, V3, "--config.model.output_stride=8"),
    ("v3 T6", "and six scales", 79.45, V3, f"--config.model.output_stride=8 {SIX}"),
    ("v3 T6", "and flipped", 79.77, V3, f"--config.model.output_stride=8 {SIX} {FLIP}"),
    ("v3 T9", "batch size 12", 76.49, f"{V3} --config.data.batch_size=12", ""),
    ("v3 T10", "trained at 8, batch size 6", 75.62,
     f"{V3} --config.model.output_stride=8 --config.data.batch_size=6", ""),
    ("v3+ T2", "decoder: one 1x1", 78.07, "--config.model.decoder=kerascv", ""),
    ("v3+ T3", "DeepLabv3+, stride 16", 78.85, "", ""),
    ("v3+ T3", "and six scales", 80.09, "", SIX),
    ("v3+ T3", "and flipped", 80.22, "", f"{SIX} {FLIP}"),
    ("v3+ T3", "evaluated at 8", 79.35, "", "--config.model.output_stride=8"),
    ("v3+ T3", "and six scales", 80.43, "", f"--config.model.output_stride=8 {SIX}"),
    ("v3+ T3", "and flipped", 80.57, "", f"--config.model.output_stride=8 {SIX} {FLIP}"),
    ("v3+ T3", "trained at 32", 77.37, "--config.model.output_stride=32", ""),
    ("v3+ T3", "and evaluated at 16", 77.80, "--config.model.output_stride=32",
     "--config.model.output_stride=16"),
]  # fmt: skip

table = Table(title="--config deeplabv3plus_resnet101_voc and --config...")
for column in ("table", "row", "published", "training", "evaluation"):
    table.add_column(column, no_wrap=True)
for source, row, score, training, evaluation in ROWS:
    overrides = shlex.split(f"{training} {evaluation}")
    changed = parse_config(["--config", "deeplabv3plus_resnet101_voc", *overrides])
    config_lib.validate(changed)
    build_model(changed.model, num_classes=21)
    short = (text.replace(SIX, ".eval.scales=SIX").replace("--config.", ".") for text in (training, evaluation))
    table.add_row(source, row, f"{score:.2f}", *(text.replace(" ", "\n") for text in short))
console.print(table)
print("SIX is", SIX.partition("=")[2])

# %% [markdown]
"""
Each field starts with `--config`, which the table omits. DeepLabv3, trained at 16 and evaluated at 8, is then

```
deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
deeplab-jax train --config deeplabv3plus_resnet101_voc --config.model.decoder=none \
    --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/v3
deeplab-jax evaluate --workdir runs/v3 --config.model.output_stride=8
```

A training run takes 30,000 steps with 16 crops of 513x513: with the 98 x 10^9 multiply-adds of section 2, times three
for the gradients, 1.4 x 10^17 multiply-adds. The notebook [One model on many devices](05_pods.ipynb) shows what it
needs on a pod.

This package does not include the cascaded blocks 5 to 7 of DeepLabv3 (tables 1 to 4), Xception (table 5 of
DeepLabv3+), rows trained on COCO or JFT, and the decoders of table 1 with a single 3x3 convolution.
"""
