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
# One model on many devices

In this notebook you see how a batch, the parameters and the rows of an image are split over the devices of a pod. You
check that a train step on eight devices equals the step on one, count what the devices send each other, and learn how
to estimate what a config needs on a TPU slice that you do not have, and how to start it there.

The notebook runs in about a minute on two CPU cores. It needs no GPU and no TPU: XLA splits one CPU into eight
devices. They are no faster than one, but their programs contain all the communication that eight chips need.

## Setup

The number of devices must be set before JAX is imported. The notebook also lowers XLA's optimization level, because
it compiles more than it computes. Remove both lines on a GPU or TPU machine.
"""

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import matplotlib
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

import deeplab_jax
from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.analysis import aot_compile
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import optimizer as optimizer_lib
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import build_program
from deeplab_jax.visualization.figures import new_figure

console = Console(width=96, force_jupyter=False, force_terminal=False, no_color=True)  # prints tables as text


def show(title, columns, rows):
    """Prints a table. All columns except the first are aligned to the right."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


print(jax.devices())

# %% [markdown]
"""
## 1. The mesh

Devices form a grid with three axes. `config.mesh` sets their sizes; -1, for one of them, takes the remaining devices.

| axis | splits | devices exchange |
|---|---|---|
| `data` | the batch | sums: BatchNorm statistics, gradients, loss, counts |
| `fsdp` | the batch; parameters, momentum, batch statistics | the same sums, and each parameter where it is used |
| `spatial` | the rows of images, features and labels | the same sums as `data`, and the rows at the edges |

The next cell asks JAX where each array is and draws it: a batch of eight images, and the kernel of a convolution with
its input features from top to bottom and its output features from left to right. The numbers are the devices that
hold each part.
"""

# %%
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 4 x fsdp 2": {"data": 4, "fsdp": 2},
    "data 2 x spatial 4": {"data": 2, "spatial": 4},
}
COLORS = matplotlib.colormaps["tab10"].colors


def mesh_of(sizes, devices=None):
    """Creates a mesh with these values of `config.mesh`."""
    config = config_lib.base_config().mesh
    config.update(sizes)
    return mesh_lib.make_mesh(config, devices)


def parts_of(placed, shape):
    """Returns the parts of an array on a mesh: bounds along each axis, and the numbers of the devices that hold it."""
    parts = {}
    for device, index in placed.devices_indices_map(shape).items():
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
        parts.setdefault(bounds, []).append(device.id)
    return parts


def draw_part(axes, left, top, width, height, holders):
    """Draws a frame in the color of its device, gray if all devices hold it, with the numbers of the devices."""
    color = "gray" if len(holders) == 8 else COLORS[holders[0]]
    axes.add_patch(Rectangle((left, top), width, height, facecolor=(*matplotlib.colors.to_rgb(color), 0.45), ec=color))
    text = "all" if len(holders) == 8 else " ".join(map(str, sorted(holders)))
    outline = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
    axes.text(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=7, bbox=outline)


size, kernel = 64, (3, 3, 128, 128)
source = data.open_source("synthetic", "val", image_size=(size, size))
figure = new_figure(11, 5.2)
figure.set_layout_engine("constrained")
grid = figure.subplots(len(MESHES), 2, width_ratios=(8, 1))
for (images, weights), (name, sizes) in zip(grid, MESHES.items(), strict=True):
    mesh = mesh_of(sizes)
    images.imshow(np.concatenate([source[i]["image"].mean(axis=2) for i in range(8)], axis=1), cmap="gray")
    for ((first, last), (top, bottom), _), holders in parts_of(sharding.image_sharding(mesh), (8, size, size)).items():
        for i in range(first, last):
            draw_part(images, i * size, top, size, bottom - top, holders)
    spec = sharding.partition_spec("params/conv/kernel", kernel, mesh.shape["fsdp"], fsdp_min_size=2**14)
    for (_, _, rows, columns), holders in parts_of(NamedSharding(mesh, spec), kernel).items():
        draw_part(weights, columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0], holders)
    weights.set(xlim=(0, kernel[3]), ylim=(kernel[2], 0), aspect="equal")
    images.set_title(f"{name}: eight images", loc="left", fontsize=9)
    weights.set_title("a kernel", loc="left", fontsize=9)
    for axes in (images, weights):
        axes.set_axis_off()
figure

# %% [markdown]
"""
The rules in `deeplab_jax.parallel.sharding.RULES` select the axis to split over `fsdp` by the name of an array. A
kernel is split along its output features, or else its input features. Small arrays (`mesh.fsdp_min_size`) are not
split, because gathering them would take longer than it is worth. The next table shows how much of the train state one
device holds, for the ResNet-101 config of the papers: parameters, momentum and batch statistics in float32. This
computes nothing, so the mesh can be larger than this machine.
"""

# %%
config = deeplab_jax.load_config("deeplabv3plus_resnet101_voc")
optimizer, _ = optimizer_lib.make(config.optimizer, total_steps=1, parts=PARTS)
state = TrainState.shapes(build_model(config.model, 21), optimizer)
whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

rows = []
for fsdp in (1, 4, 16, 64):
    places = sharding.state_shardings(state, AbstractMesh((1, fsdp, 1), mesh_lib.MESH_AXES), fsdp_min_size=2**14)
    own = sum(
        np.prod(place.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    )
    rows.append((fsdp, f"{own / 1e6:.1f}", f"{own / whole:.3f}"))
show("Train state of ResNet-101", ("fsdp", "MB per device", "fraction of the whole"), rows)

# %% [markdown]
"""
`deeplab-jax summary --config deeplabv3plus_resnet101_voc --mesh 8 --config.mesh.fsdp=4` lists the placement of every
array.

## 2. Errors come first

A mesh that does not divide the devices, a batch that does not divide over the mesh, and rows that do not divide are
errors of one line, raised before any data is read.
"""

# %%
for fields in (
    {"mesh.fsdp": 3},
    {"data.batch_size": 12},
    {"mesh.spatial": 4, "eval.protocol": "squeeze"},
    {"mesh.spatial": 4},
):
    wrong = deeplab_jax.load_config("deeplabv3plus_resnet101_voc")
    wrong.update_from_flattened_dict(fields)
    protocol = data.protocol_for(wrong)
    try:
        mesh_lib.validate_mesh(wrong, 8, 1, input_sizes=protocol.input_sizes, can_split_rows=protocol.can_split_rows)
    except deeplab_jax.UserError as error:
        print(f"UserError: {error}")

# %% [markdown]
"""
The config `deeplabv3plus_resnet101_cityscapes` has sizes that divide: 1024x2048 images over four devices.

## 3. The same step on one device and on eight

A step on a mesh is a step on the global batch: BatchNorm sees the statistics of all images, and the loss is the mean
over all labeled pixels, wherever they are. In float64 the results agree to the last digits. The model here is small
and has narrow layers, every array of at least 64 elements is split, and one device has fewer labeled pixels than the
others.
"""


# %%
def small_config(sizes, compute_dtype):
    """Returns a config of a small model on a mesh."""
    config = deeplab_jax.load_config("quickstart")
    config.model.aspp_channels = config.model.decoder_channels = config.model.low_level_channels = 8
    config.model.output_stride, config.model.atrous_rates = 16, (1, 2)
    config.data.image_size = config.eval.image_size = (128, 48)
    config.data.batch_size = 8
    config.train.compute_dtype = compute_dtype
    config.mesh.update({"data": 1} | sizes)
    config.mesh.fsdp_min_size = 64
    return config


def build(sizes, compute_dtype):
    """Returns the train program of the small config, and its mesh."""
    config = small_config(sizes, compute_dtype)
    mesh = mesh_lib.make_mesh(config.mesh)
    return build_program(config, num_classes, mesh, total_steps=10), mesh


def one_step(sizes, first):
    """Takes a step in float64 from a state on the host. Returns the next state and the report, on the host."""
    program, mesh = build(sizes, "float64")
    after, report = program.step(jax.device_put(first, program.shardings), sharding.to_global(batch, mesh))
    return jax.device_get((after, report))


num_classes = 6
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (8, 128, 48, 3), dtype=np.uint8),
    "label": rng.integers(0, num_classes, (8, 128, 48), dtype=np.uint8),
}
batch["label"][0] = 255  # the first image has no labels

with jax.enable_x64(True):
    program, _ = build({}, "float64")
    first = jax.device_get(program.random_state(seed=0))
    first = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, first)
    one, one_report = one_step({}, first)
    rows = []
    for name in ("data 8", "data 4 x fsdp 2", "data 2 x spatial 4"):
        many, report = one_step(MESHES[name], first)
        differences = [
            max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True))
            for here, there in ((one.opt_state, many.opt_state), (one.batch_stats, many.batch_stats))
        ]
        loss = abs(report["loss_sum"] / one_report["loss_sum"] - 1)
        same = np.array_equal(report["confusion"], one_report["confusion"])
        rows.append((name, *(f"{value:.1e}" for value in (*differences, loss)), same))
gradients = [leaf for leaf in jax.tree.leaves(one.opt_state) if leaf.ndim]  # without the step count
print(f"largest gradient {max(np.abs(leaf).max() for leaf in gradients):.1e}, loss {one_report['loss_sum']:.1f}")
show(
    "One step in float64: largest differences from one device",
    ("mesh", "gradients", "statistics", "loss, relative", "same confusion matrix"),
    rows,
)

# %% [markdown]
"""
After the first step, the momentum is the gradient plus its weight decay, so the first column compares gradients. The
remaining differences come from the order of summation. In float32 the differences are larger, because a deep network
amplifies rounding errors: [Sharding](../docs/sharding.md) has both.

## 4. Communication

The compiled program lists its collectives. `deeplab_jax.analysis.aot_compile` compiles the step that `train` would
run, and reads memory, operations and collectives from it. Here it does so for the eight devices of this notebook and
the small model, in float32.
"""

# %%
table = Table(title="One train step, per device")
for column in ("mesh", "arguments, MB", "temporaries, MB", "collectives"):
    table.add_column(column)
for name in ("data 8", "fsdp 8", "data 2 x spatial 4"):
    compiled = aot_compile.compile_program(
        small_config(MESHES[name], "float32"), jax.devices(), num_classes=num_classes
    )
    exchanged = "\n".join(
        f"{entry['count']} {kind}s, {entry['bytes'] / 1e6:.2f} MB"
        for kind, entry in sorted(compiled.collectives.items())
    )
    table.add_row(name, f"{compiled.arguments / 1e6:.2f}", f"{compiled.temporaries / 1e6:.2f}", exchanged)
console.print(table)

# %% [markdown]
"""
- `data` only sums. Most of the sums are for BatchNorm, most of the bytes for gradients.
- `fsdp` gathers each parameter where it is used. A device holds an eighth of the state. On CPUs and with small models
  it sends more.
- `spatial` passes rows on: a collective-permute sends the rows at the edge of a device's part to its neighbor, whose
  convolutions need them.

## 5. A TPU slice that you do not have

`pip install 'deeplab_jax[tpu]'` installs the TPU compiler, which needs no TPU. Then you can ask the same for a slice:

```
deeplab-jax aot --config deeplabv3plus_resnet101_voc --config.train.compute_dtype=bfloat16 \
    --topology v5e:4x4 --batch-per-chip 4
```

These are recorded results of that command with the topologies of the rows (jax 0.10.2, libtpu 0.0.42.1): ResNet-101
of the papers' config, 513x513 pixels, bfloat16. Memory is in GiB per chip.

| slice | batch | arguments | temporaries | code | total | GFLOP | all-reduces | MB sent | roofline, ms | images/s |
|---|---|---|---|---|---|---|---|---|---|---|
| `v5e:2x2` | 16 | 0.45 | 3.43 | 0.24 | 4.12 of 15.75 | 2,445 | 214 | 179.7 | 88.8 | 180 |
| `v5e:4x4` | 64 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 224.6 | 88.8 | 720 |
| `v5e:8x8` | 256 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 235.9 | 88.8 | 2,882 |
| `v5e:16x16` | 1,024 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 238.7 | 88.8 | 11,527 |

From 4 to 256 chips, a chip holds and computes the same, and the bytes it sends approach twice the size of the
gradients. The *roofline* divides operations, bytes of memory and bytes sent by the published peaks of the chip, and
takes the longest time. **It is a bound, not a measurement: no step was run on a TPU.** `--find-batch` finds the
largest batch that fits, and `--inference` analyzes the evaluation step. [Pods](../docs/pods.md) has more rows and
explains the columns.

## 6. Start it on a pod

Run the same command on every host of a TPU slice. With `--cluster`, the processes find each other:

```
deeplab-jax train --cluster --config deeplabv3plus_resnet101_voc --config.train.compute_dtype=bfloat16 \
    --config.data.batch_size=64 --config.data.data_dir=/shared/data --workdir /shared/runs/voc \
    --config.checkpoint.every=500steps
```

- `data.batch_size` is the global batch size: 64 means four images on each of 16 chips. If you change the batch size,
  choose a learning rate for it.
- Put data and workdir on a disk that all hosts share. Process 0 writes and logs.
- If the run is interrupted, run the same command again. On SIGTERM, which preempted hosts receive, all processes save
  the same step and exit with code 75.
- Under SLURM, `srun` starts the same command, with one task per GPU.
- `deeplab-jax train --local-processes 2 ...` starts two processes on one machine, to try it.
- A checkpoint of one mesh can be restored on another, so a run can continue on more or fewer devices.

[Pods](../docs/pods.md) has both run-books step by step, [Reliability](../docs/reliability.md) describes what happens
at each failure, and [Sharding](../docs/sharding.md) has the rules and the measurements.
"""
