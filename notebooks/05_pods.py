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
# One network on many devices

At the end of this page you will know how a batch, the parameters and the rows of an image are laid over the devices of
a pod, you will have seen that a training step computes the same on eight devices as on one, counted what they send
each other, and know how to ask what a config needs on a TPU slice that you do not have, and how to start it there.

Running the whole page takes about a minute on two processor cores. It needs no GPU and no TPU: XLA makes eight devices
out of one processor. They are as slow as one, but the programs have all the exchanges that eight chips need.

## Setup

The number of devices has to be said before JAX is imported, and so has a lower level of optimization, for this page
compiles more than it computes. On a GPU or TPU machine both lines fall away.
"""

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import matplotlib
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

import deeplab_jax
from deeplab_jax import config as config_lib
from deeplab_jax import data
from deeplab_jax.analysis import aot_compile
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import build_program

console = Console(width=112, force_jupyter=False, force_terminal=False, no_color=True)  # plain text


def show(title, columns, rows):
    """Prints a table; everything but the first column is set to the right."""
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

Devices stand in a grid of three axes, whose sizes are `config.mesh`; -1, for one of them, takes the rest of the
devices.

| axis | splits | and devices tell each other |
|---|---|---|
| `data` | the batch | sums: BatchNorm's statistics, gradients, the loss, the counts |
| `fsdp` | the batch; parameters, momentum, statistics | the same, and each parameter where it is used |
| `spatial` | the rows of images, features and label maps | the same as `data`, and the rows at each one's edges |

The next cell asks JAX where everything lies and draws it: a batch of eight images, and the kernel of a convolution,
its input features from top to bottom and its output features from left to right. The numbers are those of the devices
that hold a part.
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
    """The mesh of `config.mesh` with these sizes."""
    config = config_lib.base_config().mesh
    config.update(sizes)
    return mesh_lib.make_mesh(config, devices)


def parts_of(placed, shape):
    """The parts of an array on a mesh: bounds along each axis, and the numbers of the devices that hold it."""
    parts = {}
    for device, index in placed.devices_indices_map(shape).items():
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
        parts.setdefault(bounds, []).append(device.id)
    return parts


def draw_part(axes, left, top, width, height, holders):
    """A frame in the color of its device, gray where all have it, with the numbers of its devices."""
    color = "gray" if len(holders) == 8 else COLORS[holders[0]]
    axes.add_patch(Rectangle((left, top), width, height, facecolor=(*matplotlib.colors.to_rgb(color), 0.45), ec=color))
    text = "all" if len(holders) == 8 else " ".join(map(str, sorted(holders)))
    outline = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
    axes.text(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=7, bbox=outline)


size, kernel = 64, (3, 3, 128, 128)
source = data.open_source("synthetic", "val", image_size=(size, size))
figure = Figure(figsize=(11, 5.2), layout="constrained", dpi=80)
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
Rules in `deeplab_jax.parallel.sharding.RULES` say by an array's name which axis is split over `fsdp`: a kernel's output
features or else its input features. Small arrays (`mesh.fsdp_min_size`) stay whole, for gathering them takes longer
than they save. This is what a device then holds of the train state of the papers' ResNet-101: parameters, momentum and
batch statistics, in float32. Nothing is computed for it, so the mesh can be one that is not here.
"""

# %%
config = deeplab_jax.load_config("deeplabv3plus_resnet101_voc")
transformation, _ = optimizer.make(config.optimizer, total_steps=1, parts=PARTS)
state = TrainState.shapes(build_model(config.model, 21), transformation)
whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

rows = []
for fsdp in (1, 4, 16, 64):
    places = sharding.state_shardings(state, AbstractMesh((1, fsdp, 1), mesh_lib.MESH_AXES), fsdp_min_size=2**14)
    own = sum(
        np.prod(place.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    )
    rows.append((fsdp, f"{own / 1e6:.1f}", f"{own / whole:.3f}"))
show("train state of ResNet-101", ("fsdp", "MB a device", "of the whole"), rows)

# %% [markdown]
"""
`deeplab-jax summary --config deeplabv3plus_resnet101_voc --mesh 8 --config.mesh.fsdp=4` lists every array with its
place.

## 2. What does not fit is said before any work

A mesh that does not divide the devices, a batch that does not divide over the mesh, rows that do not divide: each is an
error of one line, before any data is read.
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
    try:
        config_lib.validate(wrong, devices=8)
    except UserError as error:
        print(f"UserError: {error}")

# %% [markdown]
"""
The config `deeplabv3plus_resnet101_cityscapes` has sizes that divide: images of 1024x2048 over four devices.

## 3. The same step on one device and on eight

A step on a mesh is the step of the global batch: BatchNorm's statistics are those of all images, and the loss is the
mean over all labeled pixels, however they are spread. In float64 this can be seen to the last digits. The network is a
small one, with narrow layers and every array of 64 elements and more split, and a device of its own has fewer labeled
pixels than another.
"""


# %%
def small_config(sizes, compute_dtype):
    """A config of a small network on a mesh."""
    config = deeplab_jax.load_config("quickstart")
    config.model.aspp_channels = config.model.decoder_channels = config.model.low_level_channels = 8
    config.model.output_stride, config.model.atrous_rates = 16, (1, 2)
    config.data.image_size = config.eval.image_size = (128, 48)
    config.data.batch_size = 8
    config.train.compute_dtype = compute_dtype
    config.mesh.update({"data": 1} | sizes)
    config.mesh.fsdp_min_size = 64
    return config


def one_step(sizes, first):
    """A step in float64 from a state on the host: the state after it, and its report, on the host again."""
    config = small_config(sizes, "float64")
    mesh = mesh_lib.make_mesh(config.mesh)
    program = build_program(config, num_classes, mesh, total_steps=10, warmup_steps=0)
    after, report = program.step(jax.device_put(first, program.shardings), sharding.to_global(batch, mesh))
    return jax.device_get((after, report))


num_classes = 6
rng = np.random.default_rng(0)
batch = {
    "image": rng.integers(0, 256, (8, 128, 48, 3), dtype=np.uint8),
    "label": rng.integers(0, num_classes, (8, 128, 48), dtype=np.uint8),
}
batch["label"][0] = 255  # nothing is labeled in the first image

with jax.enable_x64(True):
    alone = small_config({}, "float64")
    program = build_program(alone, num_classes, mesh_lib.make_mesh(alone.mesh), total_steps=10, warmup_steps=0)
    first = jax.device_get(TrainState.create_on(program.shardings, program.model, program.optimizer, seed=0))
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
gradients = [leaf for leaf in jax.tree.leaves(one.opt_state) if leaf.ndim]  # without the count of steps
print(f"largest gradient {max(np.abs(leaf).max() for leaf in gradients):.1e}, loss {one_report['loss_sum']:.1f}")
show(
    "one step, float64, largest differences from one device",
    ("mesh", "gradients", "statistics", "loss, relative", "confusion matrix equal"),
    rows,
)

# %% [markdown]
"""
After the first step the momentum is the gradient with its weight decay, so the first column compares gradients. What is
left is the order of summation. In float32 the same comparison shows larger differences, for a network of this depth
amplifies rounding: [docs/sharding.md](../docs/sharding.md) has both.

## 4. What they send

The compiled program says which collectives it has. `deeplab_jax.analysis.aot_compile` compiles the step of `train` and
reads memory, operations and collectives off it; here for the eight devices of this page and the small network, in
float32.
"""

# %%
rows = []
for name in ("data 8", "fsdp 8", "data 2 x spatial 4"):
    program = aot_compile.compile_program(small_config(MESHES[name], "float32"), jax.devices(), num_classes=num_classes)
    exchanged = ", ".join(
        f"{entry['count']} {kind}s of {entry['bytes'] / 1e6:.2f} MB"
        for kind, entry in sorted(program.collectives.items())
    )
    rows.append((name, f"{program.arguments / 1e6:.2f}", f"{program.temporaries / 1e6:.2f}", exchanged))
table = Table(title="one training step, a device")
for column in ("mesh", "arguments, MB", "temporaries, MB", "collectives"):
    table.add_column(column)
for row in rows:
    table.add_row(*row)
console.print(table)

# %% [markdown]
"""
- `data` has sums alone. BatchNorm accounts for most of the number, gradients for most of the bytes.
- `fsdp` gathers each parameter where it is used. A device holds an eighth of the state, and of small networks on
  CPUs sends more for it.
- `spatial` passes rows on: a collective-permute sends the rows at the edge of a device's own to its neighbor, who
  needs them for a convolution.

## 5. A TPU slice that is not here

With `pip install 'deeplab_jax[tpu]'`, which brings the TPU's compiler and needs no TPU, the same is asked of a slice:

```
deeplab-jax aot --config deeplabv3plus_resnet101_voc --config.train.compute_dtype=bfloat16 \
    --topology v5e:4x4 --batch-per-chip 4
```

These are recorded answers of that command, with the topologies of the rows (jax 0.10.2, libtpu 0.0.42.1): ResNet-101
of the papers' config, 513x513 pixels, bfloat16.

| slice | batch | arguments | temporaries | code | GiB in all | GFLOP | all-reduces | MB sent | roofline ms | image/s |
|---|---|---|---|---|---|---|---|---|---|---|
| `v5e:2x2` | 16 | 0.45 | 3.43 | 0.24 | 4.12 of 15.75 | 2,445 | 214 | 179.7 | 88.8 | 180 |
| `v5e:4x4` | 64 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 224.6 | 88.8 | 720 |
| `v5e:8x8` | 256 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 235.9 | 88.8 | 2,882 |
| `v5e:16x16` | 1,024 | 0.45 | 3.43 | 0.24 | 4.12 | 2,445 | 214 | 238.7 | 88.8 | 11,527 |

From 4 to 256 chips a chip holds and computes the same; what it sends rises towards twice the gradients. The *roofline*
divides operations, bytes and what is sent by the published peaks of the chip and takes the longest. **It is a bound,
not a measurement: no step was run on a TPU.** `--find-batch` finds the largest batch that fits, `--inference` asks the
same of the evaluation. [docs/pods.md](../docs/pods.md) has more rows, and what the columns mean.

## 6. Start it there

The same command on every host of a TPU slice; `--cluster` learns from the slice who is who:

```
deeplab-jax train --cluster --config deeplabv3plus_resnet101_voc --config.train.compute_dtype=bfloat16 \
    --config.data.batch_size=64 --config.data.data_dir=/shared/data --workdir /shared/runs/voc \
    --config.checkpoint.every=500steps
```

- `data.batch_size` is global: 64 is four images on each of 16 chips. With a batch other than the config's the
  learning rate is yours to choose.
- Data and workdir lie on a disk that all hosts share. Process 0 writes and reports.
- Whatever ends the run, the same command continues it. After SIGTERM, which a host that is taken away sends, all
  processes save one agreed step and exit with code 75.
- Under SLURM, `srun` starts the same command, one task for each GPU.
- `deeplab-jax train --local-processes 2 ...` starts two processes on one machine, to try it.
- A checkpoint of one mesh restores on another, so a run can go on with more devices or fewer, and is evaluated or used
  on one.

[docs/pods.md](../docs/pods.md) has both run-books step by step, [docs/reliability.md](../docs/reliability.md) what
happens at which fault, and [docs/sharding.md](../docs/sharding.md) the rules and the measurements.
"""
