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

Every published row of DeepLabv3 ([arXiv 1706.05587](https://arxiv.org/abs/1706.05587)), DeepLabv3+ ([arXiv
1802.02611](https://arxiv.org/abs/1802.02611)), SegFormer, MobileNetV3 and research/deeplab's model zoo is in
`deeplab_jax.papers`. In this notebook you pick a row, look at its network, count its multiply-adds beside the paper's,
and train the rows of a table at a size that this machine can do.

The notebook runs in about two minutes on two CPU cores. It needs no GPU and no download.

It has three kinds of numbers. *Published* numbers are the papers', with the number of the table. *Counted* numbers
are multiply-adds of the full-size networks, counted exactly. *Measured* numbers say what they were measured on: drawn
scenes in section 4, photos of Pascal VOC in section 5.

## Setup
"""

# %%
import itertools
import logging
import pathlib
import sys
import tempfile
from collections import Counter

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

import deeplab_jax
from deeplab_jax import papers, pretrained, visualization
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
## 1. Pick a row

Each row has a state. It *runs* if its data and the weights it starts from are public, and it is *verified* if its
score was measured here. The table counts the rows of each publication by state.
"""

# %%
counts = Counter((row.paper, papers.state_of(row)) for row in papers.list_rows())
show(
    "Published rows", ("", *papers.STATES),
    [(paper, *(counts[paper, state] or "–" for state in papers.STATES)) for paper in papers.PAPERS],
)  # fmt: skip
for state, meaning in papers.STATES.items():
    print(f"{state}: {meaning}")

# %% [markdown]
"""
`papers.list_rows("v3plus", "3")` lists the rows of a table, as `deeplab-jax papers list --paper v3plus --table 3` does
in a shell. Table 3 of DeepLabv3+ has ResNet-101 with and without the decoder, at several output strides of training and
evaluation. This is the row with the decoder, trained at 16 and evaluated at 8:
"""

# %%
row = papers.find_row("v3plus-3-16-8-decoder")
print(row)
print(papers.describe_protocol(row))
for command in papers.row_commands(row):
    print(f"$ {command}")

# %% [markdown]
"""
`deeplab-jax papers run v3plus-3-16-8-decoder --workdir runs/v3plus` does all of this, and prints the measured score
beside the published one. A training run takes 30,000 steps with 16 crops of 513x513, which is work for accelerators:
the notebook [One model on many devices](05_pods.ipynb) shows what it needs on a pod.

A row is a config and the fields that it changes. Those of the other rows of this table:
"""

# %%
table3 = papers.list_rows("v3plus", "3")
rows = []
for row in table3:
    changes = ["\n".join(f"{field}={value}" for field, value in fields.items()) for fields in (row.train, row.evaluate)]
    rows.append((row.id, row.published["mean_iou"], *changes))
show(f"v3plus, table 3: --config {row.config}", ("row", "published", "training", "evaluation"), rows)

# %% [markdown]
"""
## 2. Its network

Three fields change the network in most tables:

- `model.output_stride`: 32, 16 or 8. The backbone stops shrinking the image at this stride. From there on its
  convolutions are dilated by a *rate*, with the same parameters.
- `model.multi_grid`: factors on the rates of the three units of the last stage.
- `model.decoder`: `paper` is DeepLabv3+, `none` is DeepLabv3.

The next cell traces the network, which computes nothing, and reads the rates from the traced program.
"""


# %%
def read_rates(output_stride):
    """Returns the rates of dilated convolutions by layer."""
    model = build_model(papers.training_config(row).model, row.classes, output_stride=output_stride)
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), np.uint8)
    variables = abstract_variables(model)
    program = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False)[0])
    convolutions = (
        (path, equation.params["rhs_dilation"][0])
        for path, equation in equations(program(variables, images).jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    )
    return {path: rate for path, rate in convolutions if rate > 1}


PARTS = {"stage3": "block 3", "stage4": "block 4", "aspp": "ASPP"}
rates = {stride: read_rates(stride) for stride in (32, 16, 8)}
rows = []
for stride, by_layer in rates.items():
    cells = []
    for part in PARTS:
        number = Counter(rate for path, rate in by_layer.items() if part in path)
        cells.append(", ".join(f"{count} x {rate}" if count > 1 else f"{rate}" for rate, count in number.items()))
    rows.append((stride, *cells))
show("Rates above 1 with multi-grid (1, 2, 4)", ("output stride", *PARTS.values()), rows)

# %% [markdown]
"""
The figure shows these rates. Each dot is a feature that one output sees, on the 33x33 features of a 513x513 image at
stride 16: the three convolutions of block 4 one by one, then the four convolution branches of ASPP. At rate 18, only
the center tap falls on the features.
"""

# %%
figure = visualization.new_figure(9, 2.2)
figure.set_layout_engine("constrained")
stage4, aspp = ([rate for path, rate in rates[16].items() if part in path] for part in ("stage4", "aspp"))
taps = [(f"block 4, unit {unit}", [rate]) for unit, rate in enumerate(stage4, 1)] + [("ASPP", [0, *aspp])]
for axes, (title, branches) in zip(figure.subplots(1, len(taps)), taps, strict=True):
    for number, rate in enumerate(branches):
        places = 16 + rate * np.array([-1, 0, 1])
        axes.plot(*(grid.ravel() for grid in np.meshgrid(places, places)), "o", ms=4, color=f"C{number}")
    axes.set(xlim=(-1, 33), ylim=(33, -1), xticks=(), yticks=(), aspect="equal")
    axes.set_title(f"{title}: rate {', '.join(str(max(rate, 1)) for rate in branches)}", fontsize=8)
figure

# %% [markdown]
"""
At stride 32, only the multi-grid dilates block 4. At 16, its convolutions replace one stride of 2, so the rates
double. At 8, block 3 replaces another stride. ASPP's rates are stated for stride 16 and scale with it; the paper
doubles them at 8.

## 3. Multiply-adds, counted and published

Table 3 also has the multiply-adds of one 513x513 image. `papers.row_costs` counts them in two ways. *Plain* is one
multiply-add per weight and output pixel, the definition of a convolution. *Padded* also counts the work on the padding
that TensorFlow's dilated convolutions add: `tf.nn.with_space_to_batch` splits a feature map into rate x rate maps, one
per remainder, and pads height and width to multiples of the rate (see its
[documentation](https://www.tensorflow.org/api_docs/python/tf/nn/with_space_to_batch)).
"""

# %%
rows = []
for row in table3:
    if "eval.scales" in row.evaluate:
        continue  # six scales take long to count
    costs = papers.row_costs(row)
    cells = ((f"{count:.2f}", f"{100 * (count / row.multiply_adds - 1):+.1f} %")
             for count in (costs.multiply_adds, costs.padded))  # fmt: skip
    rows.append((row.name, row.multiply_adds, *(cell for pair in cells for cell in pair)))
show("10^9 multiply-adds, ResNet-101", ("trained / evaluated at", "published", "plain", "", "padded", ""), rows)

# %% [markdown]
"""
The plain count is below the published one, and the gap grows with the number of dilated convolutions. The padded count
is within half a percent of all rows except those at stride 16 with the decoder. At the other two strides, the published
cost of the decoder is 21.74 and 21.77, as it is here; at 16 it is 20.26. The paper's number for six scales agrees with
the count again. The papers do not say how they counted, so this explanation is a deduction.

`deeplab-jax papers show v3plus-5-16-16-decoder` counts a row of Xception-65, and so on for every row.

## 4. The table at a size for two cores

The changes of a row are fields of a config, so they apply to any network. This section applies those of table 3 to a
small ResNet on 65x65 scenes, and trains it twice: without a decoder (DeepLabv3) and with it (DeepLabv3+). As 513 does
for stride 16, 65 = 4 x 16 + 1 makes the corners of features and images coincide at every stride.

One training serves all rows that differ only in their evaluation.
"""


# %%
def small_config(row):
    """Returns the training config of a row with a small network and drawn scenes."""
    config = deeplab_jax.load_config("quickstart", steps=200, size=65)
    config.model.output_stride = 16
    config.model.atrous_rates = (1, 2)
    config.model.align_corners = True
    config.optimizer.schedule = "poly"
    config.optimizer.learning_rate = 0.3
    config.data.batch_size = 8
    config.eval.protocol = "whole"
    config.eval.image_size = (65, 65)
    config.log.tensorboard = False
    config.log.every_steps = 100
    config.update_from_flattened_dict(dict(row.train))
    return config


folder, measured = pathlib.Path(tempfile.mkdtemp()), {}
for name in ("16-16", "16-8", "16-16-decoder", "16-16-decoder-scales", "16-16-decoder-scales-flip", "16-8-decoder"):
    row = papers.find_row(f"v3plus-3-{name}")
    config = small_config(row)
    workdir = folder / config.model.decoder
    if not workdir.exists():
        deeplab_jax.train(config, workdir)
    measured[row] = deeplab_jax.evaluate(workdir, config=papers.evaluation_config(row, config))

# %%
rows = [
    (row.name, row.published["mean_iou"], f"{100 * scores['mean_iou']:.2f}", f"{100 * scores['pixel_accuracy']:.2f}")
    for row, scores in measured.items()
]  # fmt: skip
show("Mean IoU", ("", "published", "measured on scenes", "accuracy"), rows)

# %% [markdown]
"""
The scenes and the networks are small, and there is one run of each with one seed, so differences of a few tenths of a
percent mean little. At stride 16 a scene has only 5x5 features, and the two ASPP rates were trained for that grid: a
finer stride can lose here what it gains at the size of the papers. So can several scales: at half the size, a scene
has 3x3 features.

## 5. The same trend on photos

`deeplab-jax papers verify ROW` evaluates weights that others published, under the protocol of the row. The row below is
a MobileNetV2 of width 0.5 without a decoder, which the TensorFlow Lite examples use on phones. It sees images squeezed
to 257x257, at stride 8. Like the rows of table 3, it can be evaluated at another stride, and flipped.

If Pascal VOC is prepared on this machine, the cell measures the network, which takes minutes. Otherwise it shows what
was measured for [Reproducing the papers](../docs/papers.md), which has the command, the images and the machine.
"""

# %%
STRIDES, FLIPS = {"stride 16": 16, "stride 8": 8}, {"": False, ", flipped": True}
row = papers.find_row("zoo-mobile-mobilenet-v2-05-257")
print(row)
try:
    papers.check_data(row, papers.evaluation_config(row), "val")
except deeplab_jax.UserError:
    recorded = papers.measurement_of(row)
    print(f"recorded, on {recorded.data}")
    on_photos = recorded.variations | {"stride 8": recorded.scores["mean_iou"]}
else:
    network, on_photos = pretrained.load(row.weights), {}
    for stride, flip in itertools.product(STRIDES, FLIPS):
        config = papers.weights_config(row, network)
        config.model.output_stride, config.eval.flip = STRIDES[stride], FLIPS[flip]
        on_photos[stride + flip] = 100 * deeplab_jax.evaluate(row.weights, config=config)["mean_iou"]

rows = [(name, f"{score:.2f}", f"{score - on_photos['stride 16']:+.2f}") for name, score in sorted(on_photos.items())]
show("Mean IoU of MobileNetV2 0.5 at 257x257 on photos", ("", "measured", "gain over stride 16"), rows)

# %% [markdown]
"""
Mirroring gains 1.3 points and stride 8 gains 0.7. Published for ResNet-101 without a decoder (tables 5 and 6 of
DeepLabv3): stride 8 gains 1.3 points, and mirroring 0.3 after six scales. The directions agree; the sizes belong to
different networks and images, and to one split of 449 photos.

The notebook [SegFormer and DeepLabv3+ on your own photos](06_segformer.ipynb) compares two kinds of networks.
"""
