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
# SegFormer and DeepLabv3+ on your own photos

SegFormer ([arXiv 2105.15203](https://arxiv.org/abs/2105.15203)) is a transformer for segmentation. In this notebook you
train SegFormer B0 and a DeepLabv3+ on the same labeled images, compare their scores and predictions, and see what
pretrained weights are worth.

The notebook runs in about three minutes on two CPU cores. It needs no GPU and no download. It draws its own images so
that it runs anywhere; section 2 says what to change for real photos.

## Setup
"""

# %%
import logging
import os
import pathlib
import sys
import tempfile
import time

import matplotlib
from PIL import Image

import deeplab_jax
from deeplab_jax import data, visualization
from deeplab_jax.analysis.summary import summarize_config
from deeplab_jax.data.prepare import prepare

# A folder that you converted with `deeplab-jax convert --from transformers FOLDER --output networks/segformer`, or None
# for random weights. FOLDER is a download of nvidia/mit-b0, or of a SegFormer B0, from the Hugging Face Hub.
SEGFORMER_WEIGHTS = None

os.chdir(tempfile.mkdtemp())  # remove this line to keep the files in the current folder

matplotlib.rcParams["savefig.dpi"] = 60  # small images for a small notebook

# The library reports with `logging`. Show its messages here, and only here.
logger = logging.getLogger("deeplab_jax")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.propagate = False

# %% [markdown]
"""
## 1. Two networks

Both networks have a backbone and a head. DeepLabv3+ looks at a wide context with dilated convolutions and image
pooling. SegFormer's backbone, the Mix Transformer, compares every position with all others, at four resolutions; its
head only projects the four feature maps to one width, resizes them to stride 4, and adds them up.

The configs below train at 96x96. The table counts parameters and multiply-adds of one such image.
"""

# %%
SIZE, BATCH, STEPS = 96, 8, 250


def own_photos(config):
    """Points a config to the folder of photos that section 2 prepares, and trains it for `STEPS` steps."""
    config.data.name = "folder"
    config.data.data_dir = "data"
    config.data.scale_range = (0.75, 1.5)
    config.train.duration = f"{STEPS} steps"
    config.eval.protocol = "whole"
    config.eval.image_size = (96, 112)
    config.eval.every = None
    config.eval.batch_size = 8
    config.checkpoint.every = None
    config.log.every_steps = 50
    config.log.tensorboard = False
    return config


configs = {
    "SegFormer B0": own_photos(
        deeplab_jax.load_config("segformer_camvid", size=SIZE, batch=BATCH, steps=STEPS, init=SEGFORMER_WEIGHTS or "")
    ),
    "DeepLabv3+": own_photos(
        deeplab_jax.load_config(
            "finetune_folder", size=SIZE, batch=BATCH, init="deeplab_v3_plus_efficientnet_lite0_pascalvoc"
        )
    ),
}
for name, config in configs.items():
    parts = summarize_config(config, num_classes=6)
    parameters, operations = sum(part.parameters for part in parts), sum(part.executed for part in parts)
    print(
        f"{name:14}{config.model.backbone:18}{parameters / 1e6:6.2f}M parameters{operations / 1e9:6.2f}G multiply-adds"
    )

# %% [markdown]
"""
The counts say what a network can hold and how long it computes, not how well it segments.

## 2. Photos

The package reads a folder with `images/`, `masks/` with the same file names, and `classes.txt`. The next cell draws
such a folder. For photos of your own, skip it and put the three there yourself; the notebook [Your own
photos](02_your_own_photos.ipynb) describes formats and labeling tools, and checks a folder for mistakes.
"""

# %%
photos = pathlib.Path("photos")
scenes = data.open_source("synthetic", "train", num_examples=80, image_size=(96, 112))
for folder in ("images", "masks"):
    (photos / folder).mkdir(parents=True)
(photos / "classes.txt").write_text("\n".join(scenes.label_set.class_names))
for number, (image, label) in enumerate(data.decode_examples(scenes, range(len(scenes)))):
    Image.fromarray(image).save(photos / "images" / f"photo_{number:02}.jpg", quality=92)
    Image.fromarray(label).save(photos / "masks" / f"photo_{number:02}.png")

prepare("folder", source=photos, data_dir=pathlib.Path("data"))
val_source = data.open_source("folder", "val", data_dir="data")
images, truths = zip(*data.decode_examples(val_source, range(len(val_source))), strict=True)
label_set = val_source.label_set
deeplab_jax.plot_segmentation_mask_gallery(images[:4], y_true=truths[:4], label_set=label_set, cols=4, scale=1.8)

# %% [markdown]
"""
## 3. Train both

DeepLabv3+ starts from weights that ship with the package; they were trained on ImageNet and on Pascal VOC. SegFormer
starts from random weights unless you set `SEGFORMER_WEIGHTS` above, because NVIDIA's license allows its weights for
research and evaluation only, so this package cannot contain them. Both train for the same number of steps.
"""

# %%
scores, seconds = {}, {}
for name, config in configs.items():
    print(f"--- {name}")
    start = time.perf_counter()
    scores[name] = deeplab_jax.train(config, pathlib.Path("runs") / name)
    seconds[name] = time.perf_counter() - start

# %% [markdown]
"""
## 4. Compare
"""

# %%
print(f"{'IoU':20}" + "".join(f"{name:>28}" for name in scores))
for label in label_set.class_names:
    print(f"{label:20}" + "".join(f"{of['per_class_iou'][label]:28.3f}" for of in scores.values()))
print(f"{'mean':20}" + "".join(f"{of['mean_iou']:28.3f}" for of in scores.values()))
print(f"{'seconds of training':20}" + "".join(f"{of:28.0f}" for of in seconds.values()))

# %%
shown = slice(0, 3)
predictions = {
    name: [
        result.label_map for result in deeplab_jax.Predictor.from_pretrained(pathlib.Path("runs") / name)(images[shown])
    ]
    for name in scores
}
figure = visualization.new_figure(9, 4.2)
figure.set_layout_engine("constrained")
columns = ["image", "label", *predictions]
for row, axes in enumerate(figure.subplots(3, len(columns))):
    masks = [label_set.color_table()[mask] for mask in (truths[row], *(of[row] for of in predictions.values()))]
    for title, axis, content in zip(columns, axes, [images[row], *masks], strict=True):
        axis.imshow(content)
        axis.set_axis_off()
        if row == 0:
            axis.set_title(title, fontsize=8)
figure

# %% [markdown]
"""
This comparison has limits:

- On a few dozen images, the start matters, and only DeepLabv3+ starts from trained weights. A Mix Transformer has to
  learn from examples what a convolution has built in, that near pixels belong together.
- The images are drawn, the runs are short and there is one of each, so the scores rank nothing beyond this folder.
- `deeplab-jax papers list --paper segformer` lists what SegFormer reaches on ADE20K and Cityscapes, after 160,000 steps
  from ImageNet weights. Those rows were not run here.

## 5. SegFormer's public weights

Download `nvidia/mit-b0` (the backbone) or `nvidia/segformer-b0-finetuned-ade-512-512` (a whole network) from the
Hugging Face Hub, after you have read its license, and convert the folder:

```bash
deeplab-jax convert --from transformers mit-b0 --output networks/segformer
deeplab-jax train --config segformer_voc:init=networks/segformer --workdir runs/segformer
```

Set `SEGFORMER_WEIGHTS` to the converted folder and run this notebook again to see the difference. The classifier
starts from random weights if your classes differ from those of the network. For real photos, use `size=512`, the
largest batch size that fits, and thousands of steps. SegFormer B1 to B5 are `variant=b1` to `variant=b5`.
"""
