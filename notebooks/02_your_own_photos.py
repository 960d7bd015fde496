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
# Your own photos

In this notebook you train a model on images of your own subject, from a few dozen labeled images and the weights that
ship with the package. You check and prepare the data set, compare scores before and after training, and predict masks
for new images.

The notebook runs in two to three minutes on two CPU cores. It needs no GPU and no download. It draws its own images
so that it runs anywhere, but every step is the same for real photos, and section 8 lists what to change.

## Setup
"""

# %%
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

import cv2
import matplotlib
import matplotlib.cbook
import numpy as np
from PIL import Image

import deeplab_jax
from deeplab_jax import data, visualization

WEIGHTS = "deeplab_v3_plus_efficientnet_lite0_pascalvoc"  # the starting point; ships with the package

os.chdir(tempfile.mkdtemp())  # remove this line to keep the files in the current folder

matplotlib.rcParams["savefig.dpi"] = 60  # small images for a small notebook

# The library reports with `logging`. Show its messages here, and only here.
logger = logging.getLogger("deeplab_jax")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.propagate = False


def run(command):
    """Runs a command as a terminal would, and prints its output."""
    print(f"$ {command}")
    words = [sys.executable, "-m", "deeplab_jax", *shlex.split(command)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout.rstrip() + (f"\n(exit code {done.returncode})" if done.returncode else ""))


# Without Jupyter's request for colors and progress bars.
environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | {"COLUMNS": "96"}

# %% [markdown]
"""
## 1. Try the pretrained model first

Before you label anything, look at what the pretrained model predicts for one of your photos. It knows the 20 classes
of Pascal VOC, such as people, cats, cars and bottles. If your subject is among them, you may not need to train at
all.

The photo here is matplotlib's portrait of Grace Hopper (United States Navy, public domain).
"""

# %%
portrait = np.asarray(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
portrait = cv2.resize(portrait, (256, 300), interpolation=cv2.INTER_AREA)

predictor = deeplab_jax.Predictor.from_pretrained(WEIGHTS)
result = predictor(portrait)
print(result)

overlay = visualization.overlay(portrait, result.label_map, predictor.label_set)
Image.fromarray(visualization.add_legend(overlay, result.label_map, predictor.label_set))

# %% [markdown]
"""
## 2. Images and masks

The task of this notebook: where on a table are tomatoes, lemons and cucumbers? A *mask* answers this for one image.
It is a PNG of the same size in which each class has its own color. Pixels that are hard to label, here the outlines,
get the color of the ignore label. They count neither in the loss nor in the scores.

The next cell replaces your camera and your labeling tool. It draws small images of several sizes with their masks.
You can skip its code.
"""

# %%
COLORS = {"background": (0, 0, 0), "tomato": (224, 60, 40), "lemon": (245, 205, 50), "cucumber": (60, 150, 60)}
AXES = {"tomato": (1.0, 0.92), "lemon": (1.0, 0.72), "cucumber": (2.6, 0.52)}  # half the length and width
IGNORED = (224, 224, 192)  # the color of the ignore label


def draw(seed):
    """Draws fruit and vegetables on a table, and the RGB mask of the image."""
    rng = np.random.default_rng(seed)
    height, width = ((144, 192), (192, 144), (160, 160))[seed % 3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = cv2.resize(rng.random((height // 2, 6), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    light = 0.75 + 0.35 * (x / width * rng.uniform(-1, 1) + y / height * rng.uniform(-1, 1))
    image = rng.uniform(70, 210, 3) * (light * (0.85 + 0.3 * grain))[..., None]
    mask = np.zeros((height, width, 3), np.uint8)
    for name in rng.choice(list(AXES), size=rng.integers(3, 7)):
        size, angle = rng.uniform(20, 32), rng.uniform(0, np.pi)
        center = rng.uniform(0.1, 0.9, 2) * (width, height)

        def place(shift, name=name, size=size, angle=angle, center=center):
            """Returns coordinates along and across the body, and the distance from its center: 1 on the outline."""
            dx, dy = x - center[0] - shift, y - center[1] - shift
            along = (dx * np.cos(angle) + dy * np.sin(angle)) / (size * AXES[name][0])
            across = (dy * np.cos(angle) - dx * np.sin(angle)) / (size * AXES[name][1])
            return along, across, np.abs(along) ** 2.4 + across**2

        along, across, out = place(shift=0)
        shadow = cv2.GaussianBlur((place(shift=4)[2] < 1.05).astype(np.float32), (0, 0), 3)
        image *= 1 - 0.5 * shadow[..., None]
        skin = np.asarray(COLORS[name]) * rng.uniform(0.8, 1.1) + rng.normal(0, 8, 3)
        shade = 0.45 + 0.65 * np.sqrt(np.clip(1 - out, 0, 1))
        gloss = 200 * np.exp(-((along + 0.3) ** 2 + (across + 0.35) ** 2) / 0.02)
        body = skin * shade[..., None] + gloss[..., None]
        image[out < 1] = body[out < 1]
        mask[out < 1.08] = IGNORED
        mask[out < 0.92] = COLORS[name]
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


# %% [markdown]
"""
The package reads a folder with `images/`, `masks/` with the same file names, and `classes.txt` with one class per
line. The first class has id 0. If each name is followed by a color, masks are RGB images, as painting programs save
them. Without colors, masks are gray or palette PNGs of ids (0, 1, 2, and 255 for the ignore label), as most labeling
tools export them. Do not save masks as JPEG, because compression changes their colors.
"""

# %%
photos = pathlib.Path("photos")
(photos / "images").mkdir(parents=True)
(photos / "masks").mkdir()
(photos / "classes.txt").write_text("".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in COLORS.items()))
for number in range(36):
    image, mask = draw(number)
    Image.fromarray(image).save(photos / "images" / f"table_{number:02}.jpg", quality=92)
    Image.fromarray(mask).save(photos / "masks" / f"table_{number:02}.png")

print((photos / "classes.txt").read_text())

# %% [markdown]
"""
## 3. Check

Here are two common mistakes: a mask that was scaled down, and a mask that was scaled with interpolation, which mixes
colors along the outlines.
"""

# %%
scaled, smooth = photos / "masks" / "table_07.png", photos / "masks" / "table_12.png"
correct = {path: Image.open(path).convert("RGB") for path in (scaled, smooth)}
width, height = correct[scaled].size
correct[scaled].resize((width // 2, height // 2), Image.Resampling.NEAREST).save(scaled)
width, height = correct[smooth].size
correct[smooth].resize((width // 2, height // 2)).resize((width, height), Image.Resampling.BILINEAR).save(smooth)

run("deeplab-jax data check folder --source photos")

# %% [markdown]
"""
`data check` reads every image and mask, and reports each problem with its file. `data prepare` runs the same checks
and stops at the first problem, so a wrong mask never gets into a training run.

Both mistakes have the same fix: export the mask at the size of the image, or scale it with nearest neighbors.
"""

# %%
for path, mask in correct.items():
    mask.save(path)

run("deeplab-jax data check folder --source photos")

# %% [markdown]
"""
The table shows more than mistakes. A class that appears in few images, or covers few pixels, is hard to learn: label
more of it. Each class should also appear in `val`, or its score means nothing.

A hash of the file names splits the images: about one in five goes to `val`. If you add images later, hardly any image
changes sides. If several of your images show the same thing, list the names in `train.txt` and `val.txt` yourself,
and keep all images of one thing in one list.

## 4. Prepare

`data prepare` writes images and masks to files that support fast random access.
"""

# %%
run("deeplab-jax data prepare folder --source photos --data-dir data")

train_source = data.open_source("folder", "train", data_dir="data")
val_source = data.open_source("folder", "val", data_dir="data")
label_set = val_source.label_set
examples = data.decode_examples(val_source, range(len(val_source)))
print(f"{len(train_source)} training images, {len(val_source)} validation images")

# %% [markdown]
"""
Look at some examples before you train: do the masks match the images? `deeplab-jax data show folder --data-dir data
--output look.png` draws the same gallery for any prepared data set.
"""

# %%
images, truths = zip(*examples, strict=True)
deeplab_jax.plot_segmentation_mask_gallery(images[:6], y_true=truths[:6], label_set=label_set, cols=3, scale=1.8)

# %% [markdown]
"""
## 5. Fine-tune

The config `finetune_folder` starts from the weights that ship with the package. It scales, crops and flips images at
random, and uses a lower learning rate for the backbone. The classifier starts from random weights, because your
classes are new. `init="NAME"` starts from another model.

36 images and about a hundred steps keep this notebook short. `epochs` is the number of passes over the training
images.
"""

# %%
config = deeplab_jax.load_config("finetune_folder", size=129, batch=8, epochs=30, rate=0.15, init=WEIGHTS)
config.data.data_dir = "data"
config.data.scale_range = (0.75, 1.5)  # these images are small already; keep (0.5, 2) for photos
config.checkpoint.every = config.eval.every = "100%"
config.log.tensorboard = False

# %% [markdown]
"""
First compute the score before training, with the same weights and an untrained classifier. It is a lower bound, not
the quality of the pretrained weights. `from_pretrained` with `num_classes` creates such a model, `save_pretrained`
stores it in a folder, and `evaluate` scores the folder.
"""

# %%
model, variables = deeplab_jax.from_pretrained(WEIGHTS, label_set.num_classes)
deeplab_jax.save_pretrained("networks/untrained", model, variables, label_set)
scores_before = deeplab_jax.evaluate("networks/untrained", config=config)
print(f"mean IoU {scores_before['mean_iou']:.3f} on {scores_before['num_images']} images")

# %%
workdir = pathlib.Path("runs/photos")
scores_after = deeplab_jax.train(config, workdir)

# %% [markdown]
"""
The learning rate of 0.15 suits this model and this short training. If the loss rises or becomes NaN, which stops the
run with a message, divide the rate by three. If the loss hardly falls, multiply it by three.

In a shell, this training is one command, which can override any field:

```bash
deeplab-jax train --config finetune_folder:size=321,epochs=30 --config.data.data_dir=data --workdir runs/photos
```

## 6. Score

The *intersection over union* (IoU) compares the labeled pixels of a class with its predicted pixels. The
[guide](01_guide.ipynb) explains it in section 6. The workdir contains the scores in `metrics.json`, a gallery and the
training curves.
"""

# %%
print(f"{'IoU':12}{'before':>8}{'after':>8}")
for name in label_set.class_names:
    print(f"{name:12}{scores_before['per_class_iou'][name]:8.3f}{scores_after['per_class_iou'][name]:8.3f}")
print(f"{'mean':12}{scores_before['mean_iou']:8.3f}{scores_after['mean_iou']:8.3f}")

# %% [markdown]
"""
To share a trained model, convert the run to a folder that every command accepts as `--preset`: `deeplab-jax convert
--from workdir runs/photos --half --output networks/photos`.

A score on few images varies by several points with the choice of images. It tells good from bad, but does not rank
two similar models. Look at the predictions too, and start with the images that have the lowest scores.
"""

# %%
predictor = deeplab_jax.Predictor.from_pretrained(workdir)
predictions = [result.label_map for result in predictor(images)]

shown = slice(0, 4)
deeplab_jax.plot_segmentation_mask_gallery(
    images[shown], y_true=truths[shown], y_pred=predictions[shown], label_set=label_set, cols=2, scale=1.6
)

# %% [markdown]
"""
## 7. New images

The predictor accepts images of any size, and each prediction has the size of its image. The command does the same for
a folder, and writes a mask and an overlay with a legend for each image.
"""

# %%
new = pathlib.Path("new_photos")
new.mkdir()
for number in (100, 101, 102):
    Image.fromarray(draw(number)[0]).save(new / f"table_{number}.jpg", quality=92)

run("deeplab-jax predict new_photos --workdir runs/photos --output masks")

overlays = [Image.open(path) for path in sorted(pathlib.Path("masks").glob("*_overlay.png"))]
sheet = Image.new("RGB", (sum(image.width + 8 for image in overlays), max(p.height for p in overlays)), "white")
for i, image in enumerate(overlays):
    sheet.paste(image, (sum(other.width + 8 for other in overlays[:i]), 0))
sheet

# %% [markdown]
"""
## 8. Real photos

- **Images**: JPEG or PNG, of any size. Scale very large ones down to about 1,000 pixels first: the model cannot learn
  details that you cannot see at the size of its crop. The orientation that a phone stores is respected.
- **Labels**: [labelme](https://github.com/wkentaro/labelme), [CVAT](https://github.com/cvat-ai/cvat) and other tools
  export masks as PNG. Use the ignore label for uncertain outlines. Label every object of a class in an image:
  unlabeled objects teach the model that they are background.
- **How many**: a few dozen are a start. Train, predict images that are not labeled yet, correct the worst masks, add
  them, and train again.
- **Size**: `size=321` or `size=513` for the crop. A small object should cover about 20 pixels of it.
- **Length**: `epochs=30` to `100`. With few images, the number of steps matters more than the number of epochs.
- **Frozen layers**: `--config.optimizer.frozen='("backbone",)'` trains only the other parts. It is faster and forgets
  less. `--config.model.freeze_norm_statistics=True` helps with batch sizes below 8.
- **Memory**: `--config.train.accumulate_steps=2` computes a batch in two parts, one after the other.
- **Rare classes**: `--config.data.repeat_threshold=0.15` oversamples images with rare classes.
- **Other weights**: `deeplab-jax presets` lists pretrained models, and the notebook [Weights from other
  frameworks](04_foreign_weights.ipynb) converts files.
"""
