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
# The papers' tables, row by row

At the end of this page you will know which config stands for which row of the tables of DeepLabv3
([arXiv 1706.05587](https://arxiv.org/abs/1706.05587)) and DeepLabv3+
([arXiv 1802.02611](https://arxiv.org/abs/1802.02611)), what output stride, multi-grid and the decoder do to the
network, and how one checkpoint is evaluated at another stride and at several scales.

Running the whole page takes about a minute on two processor cores. It needs no GPU and downloads nothing.

Three kinds of numbers are on this page, and they are kept apart. *Published* ones are the papers', with the number of
the table. *Counted* ones are multiply-adds of the full-size networks, counted here exactly. *Measured* ones are scores
of a small network that this page trains on drawn scenes: they show how the evaluations are called, and say nothing
about Pascal VOC.

## Setup
"""

# %%
import math
import pathlib
import shlex
import tempfile
from collections import Counter

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import deeplab_jax
from deeplab_jax import config as config_lib
from deeplab_jax.analysis.summary import summary_table
from deeplab_jax.cli.config_flags import parse_config
from deeplab_jax.models import abstract_variables, build_model
from deeplab_jax.parallel.jaxpr import equations
from deeplab_jax.training.loop import train

matplotlib.rcParams["savefig.dpi"] = 70  # small images for a small notebook
console = Console(width=112, force_jupyter=False, force_terminal=False, no_color=True)  # plain text


def show(title, columns, rows):
    """Prints a table; everything but the first column is set to the right."""
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
*Nominal* counts the layers in the order in which the papers draw them; *executed* what is computed here, where 1x1
convolutions come before enlarging. `deeplab_jax.load_config("deeplabv3plus_resnet50_voc")` is the same with 50 layers,
and its `backbone` argument takes any other.

The other rows are this config with other values. Those of the network are three fields:

- `model.output_stride`: 32, 16 or 8. From there on the backbone stops shrinking the image; convolutions are spread
  instead, by their *rate*, over the same parameters.
- `model.multi_grid`: factors on the rates of the last stage's three units.
- `model.decoder`: `paper` is DeepLabv3+, `none` is DeepLabv3.

The next cell traces the network, which computes nothing, and reads the rates of its convolutions and their
multiply-adds off the traced program. It counts twice; section 2 says why.
"""


# %%
def count(size=513, **fields):
    """The rates of the spread convolutions by layer, and multiply-adds in 10^9: of outputs, and with padded maps."""
    model = build_model(config.model, 21, **fields, published_order=True)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    program = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False)[0])
    rates, of_outputs, padded = {}, 0, 0
    for path, equation in equations(program(variables_of(fields.get("decoder", "paper")), images).jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        spec, rate = equation.params["dimension_numbers"], equation.params["rhs_dilation"][0]
        kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        per_place = math.prod(kernel)  # height x width x inputs x features
        height, width = (output[axis] for axis in spec.out_spec[2:])
        of_outputs += per_place * height * width
        if rate > 1:
            rates[path] = rate
            height, width = (math.ceil((extent + 2 * rate) / rate) * rate - 2 * rate for extent in (height, width))
        padded += per_place * height * width
    return rates, of_outputs / 1e9, padded / 1e9


shapes = {}


def variables_of(decoder):
    """The shapes of the parameters, which no stride changes."""
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
show("rates above 1, multi-grid (1, 2, 4)", ("output stride", "block 3", "block 4", "ASPP"), rows)

# %% [markdown]
"""
A figure says more than rates. A dot is a feature that one output sees, on the 33x33 features of an image of 513x513
pixels at stride 16: block 4's three convolutions one by one, then the four branches of ASPP that are convolutions.
"""

# %%
figure = Figure(figsize=(9, 2.2), layout="constrained")
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
At stride 32 the multi-grid alone spreads block 4. At 16 its convolutions take over one stride of 2, so that the rates
double, and at 8 block 3 takes over another. ASPP's rates are stated for stride 16 and scale with it, as the paper
doubles them at 8.

## 2. Multiply-adds, counted and published

The published column is table 3 of DeepLabv3+ (513x513 pixels). *Counted* is one multiply-add for each weight that
meets a value, for each output: what a convolution is.
"""

# %%
PUBLISHED = {("none", 32): 52.43, ("none", 16): 81.02, ("none", 8): 276.18,
             ("paper", 32): 74.20, ("paper", 16): 101.28, ("paper", 8): 297.92}  # fmt: skip

rows = [
    (f"decoder {decoder}, stride {stride}", published, f"{counted:.2f}", f"{100 * (counted / published - 1):+.1f} %",
     f"{padded:.2f}", f"{100 * (padded / published - 1):+.1f} %")
    for ((decoder, stride), published), (_, counted, padded) in zip(PUBLISHED.items(), counts.values(), strict=True)
]  # fmt: skip
show("10^9 multiply-adds, ResNet-101", ("", "published", "counted", "", "with padded maps", ""), rows)

# %% [markdown]
"""
The count is below the published one, and the more so the more convolutions are spread. The difference is TensorFlow's
way of computing them: `tf.nn.with_space_to_batch` cuts a map into rate x rate maps, one for each remainder, and pads
height and width until the rate divides them (see its
[documentation](https://www.tensorflow.org/api_docs/python/tf/nn/with_space_to_batch)). The last columns count what is
computed on that padding too, and come within half a percent of five of the six rows.

The sixth, stride 16 with the decoder, is lower than this count. At the other two strides the decoder costs 21.74 and
21.77 in the published figures, as it does here; the same difference of the row at 16 is 20.26. Its figure for six
scales, below, agrees with the count again. The papers do not say how they counted, so all of this is a deduction.

Six scales (0.5, 0.75, 1, 1.25, 1.5 and 1.75) cost the sum of six images, and mirroring doubles it.
"""

# %%
sizes = [round(512 * scale) + 1 for scale in (0.5, 0.75, 1, 1.25, 1.5, 1.75)]
totals = np.sum([count(size, decoder="paper", output_stride=16)[1:] for size in sizes], axis=0)
rows = [("16, six scales", 898.69, *(f"{total:.2f}" for total in totals)),
        ("16, six scales, mirrored", 1797.23, *(f"{2 * total:.2f}" for total in totals))]  # fmt: skip
show("10^9 multiply-adds, ResNet-101 with decoder", ("stride", "published", "counted", "with padded maps"), rows)

# %% [markdown]
"""
## 3. One checkpoint, several evaluations

The parameters do not depend on the output stride, so a network that was trained at 16 can be evaluated at 8: the same
weights on a grid twice as fine. The papers do so in half of their rows, and add scales and mirrored images, over
which probabilities are averaged. All of it is config of the evaluation.

The network here is small, and so are the scenes: 65x65 pixels, because 65 = 4 x 16 + 1 is to 16 what 513 is. With such
sizes and `align_corners`, the corners of features and images coincide at every stride.
"""

# %%
workdir = pathlib.Path(tempfile.mkdtemp()) / "small"

small = deeplab_jax.load_config("quickstart", steps=250, size=65)
small.model.output_stride = 16
small.model.atrous_rates = (1, 2)
small.model.align_corners = True
small.optimizer.schedule = "poly"
small.data.batch_size = 8
small.optimizer.learning_rate = 0.3
small.eval.protocol = "whole"
small.eval.image_size = (65, 65)
small.log.tensorboard = False
small.log.every_steps = 100

results = train(small, workdir, console=console)

# %% [markdown]
"""
Each row below is one evaluation of that checkpoint on the same 200 scenes. From a shell it reads
`deeplab-jax evaluate --workdir runs/small --config.model.output_stride=8 --config.eval.flip=True`.
"""


# %%
def evaluate(stride, scales=(1.0,), flip=False):
    """Mean IoU and accuracy of the checkpoint, in percent."""
    changed = small.copy_and_resolve_references()
    changed.model.output_stride, changed.eval.scales, changed.eval.flip = stride, scales, flip
    scores = deeplab_jax.evaluate(workdir, config=changed)
    return f"{100 * scores['mean_iou']:.2f}", f"{100 * scores['pixel_accuracy']:.2f}"


rows = [
    ("16", "", "", *evaluate(16)),
    ("8", "", "", *evaluate(8)),
    ("8", "0.75, 1, 1.25", "", *evaluate(8, scales=(0.75, 1.0, 1.25))),
    ("8", "0.75, 1, 1.25", "yes", *evaluate(8, scales=(0.75, 1.0, 1.25), flip=True)),
]
show("measured, drawn scenes", ("stride", "scales", "mirrored", "mean IoU", "accuracy"), rows)

# %% [markdown]
"""
Do not read an order of the evaluations into this table: it is one small network and one seed. What it shows is that
each is one override, and that all of them use the same checkpoint.

## 4. Published rows and their configs

All rows are of ResNet-101 on Pascal VOC 2012 `val`, trained on `trainaug` from ImageNet weights. They were not run
here: these scores are the papers'. The cell applies the overrides of each row, so that it is a config that validates.
*Pooling* is ASPP's image pooling, *grid* the multi-grid; the config has both, with (1, 2, 4).
"""

# %%
SIX = "--config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)'"
FLIP = "--config.eval.flip=True"
V3 = "--config.model.decoder=none"
ROWS = [  # table, row, published mean IoU, what the training changes, what the evaluation changes besides
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
    ("v3 T6", "and mirrored", 79.77, V3, f"--config.model.output_stride=8 {SIX} {FLIP}"),
    ("v3 T9", "batch 12", 76.49, f"{V3} --config.data.batch_size=12", ""),
    ("v3 T10", "trained at 8, batch 6", 75.62, f"{V3} --config.model.output_stride=8 --config.data.batch_size=6", ""),
    ("v3+ T2", "decoder: one 1x1", 78.07, "--config.model.decoder=kerascv", ""),
    ("v3+ T3", "DeepLabv3+, stride 16", 78.85, "", ""),
    ("v3+ T3", "and six scales", 80.09, "", SIX),
    ("v3+ T3", "and mirrored", 80.22, "", f"{SIX} {FLIP}"),
    ("v3+ T3", "evaluated at 8", 79.35, "", "--config.model.output_stride=8"),
    ("v3+ T3", "and six scales", 80.43, "", f"--config.model.output_stride=8 {SIX}"),
    ("v3+ T3", "and mirrored", 80.57, "", f"--config.model.output_stride=8 {SIX} {FLIP}"),
    ("v3+ T3", "trained at 32", 77.37, "--config.model.output_stride=32", ""),
    ("v3+ T3", "and evaluated at 16", 77.80, "--config.model.output_stride=32",
     "--config.model.output_stride=16"),
]  # fmt: skip

table = Table(title="--config deeplabv3plus_resnet101_voc and --config...")
for column in ("table", "row", "published", "training", "and evaluating"):
    table.add_column(column, no_wrap=True)
for source, row, score, training, evaluating in ROWS:
    overrides = shlex.split(f"{training} {evaluating}")
    changed = parse_config(["--config", "deeplabv3plus_resnet101_voc", *overrides])
    config_lib.validate(changed)
    build_model(changed.model, num_classes=21)
    short = (text.replace(SIX, ".eval.scales=SIX").replace("--config.", ".") for text in (training, evaluating))
    table.add_row(source, row, f"{score:.2f}", *(text.replace(" ", "\n") for text in short))
console.print(table)
print("SIX is", SIX.partition("=")[2])

# %% [markdown]
"""
Before each field stands `--config`, which the table leaves out. DeepLabv3, trained at 16 and evaluated at 8, is then

```
deeplab-jax data prepare voc2012_segmentation --sbd-source benchmark.tgz
deeplab-jax train --config deeplabv3plus_resnet101_voc --config.model.decoder=none \
    --config.train.init_from=resnet_v1_101_beta_imagenet --workdir runs/v3
deeplab-jax evaluate --workdir runs/v3 --config.model.output_stride=8
```

A training is 30,000 steps of 16 crops of 513x513: with the 98 x 10^9 multiply-adds of section 2, and three times that
with the gradients, 1.4 x 10^17. [05_pods](05_pods.ipynb) says what it takes on many devices.

What is not here: the cascaded blocks 5 to 7 of DeepLabv3 (tables 1 to 4), Xception (table 5 of DeepLabv3+), and rows
that were trained on COCO or JFT. The decoders of table 1 with a single 3x3 convolution are none of `model.decoder`.
"""
