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

At the end of this page you will have a network that labels images of your own subject, trained from a few dozen
labeled images and the weights that come with the package: the data set checked and prepared, the score on images
that the training never saw, before and after, and masks for new images.

Running the whole page takes two to three minutes on two processor cores. It needs no GPU and downloads nothing. The
images are drawn by the page itself, so that it runs anywhere; every step is the one you take with real photos, and
section 8 says what changes.

## Setup
"""

# %%
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
from rich.console import Console

import deeplab_jax
from deeplab_jax import data, visualization
from deeplab_jax.training.loop import train

WEIGHTS = "deeplab_v3_plus_efficientnet_lite0_pascalvoc"  # where the training starts from: comes with the package

os.chdir(tempfile.mkdtemp())  # without this line, everything below stays in the folder that you started in

matplotlib.rcParams["savefig.dpi"] = 60  # small images for a small notebook
console = Console(width=112, force_jupyter=False, force_terminal=False, no_color=True)  # plain text


def run(command):
    """Runs a command as a terminal would, and prints what it says."""
    print(f"$ {command}")
    words = [sys.executable, "-m", "deeplab_jax", *shlex.split(command)[1:]]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout.rstrip() + (f"\n(exit code {done.returncode})" if done.returncode else ""))


# Jupyter asks its children for colors and moving bars, which a page does not show.
environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | {"COLUMNS": "112"}

# %% [markdown]
"""
## 1. What the weights know already

Before you label anything, see what the shipped network makes of a photo of yours. It knows the 20 classes of Pascal
VOC: people, cats, cars, bottles and so on. If your subject is among them, you may need no training at all.

The photo here is the portrait of Grace Hopper that matplotlib brings (United States Navy, public domain).
"""

# %%
portrait = np.asarray(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
portrait = cv2.resize(portrait, (256, 300), interpolation=cv2.INTER_AREA)

predictor = deeplab_jax.Predictor.from_preset(WEIGHTS)
(mask,) = predictor([portrait])
Image.fromarray(
    visualization.add_legend(visualization.overlay(portrait, mask, predictor.label_set), mask, predictor.label_set)
)

# %% [markdown]
"""
## 2. Images and masks

The task of this page: where on a table are tomatoes, lemons and cucumbers? A *mask* says so for one image: a PNG of
the same size in which each class has its color. Pixels that are hard to tell, here the outlines, get the color of
*void* and count neither in the loss nor in the score.

The next cell stands in for your camera and your labeling program. It draws 36 small images of differing sizes with
their masks; there is nothing to learn from it about segmentation.
"""

# %%
COLORS = {"background": (0, 0, 0), "tomato": (224, 60, 40), "lemon": (245, 205, 50), "cucumber": (60, 150, 60)}
AXES = {"tomato": (1.0, 0.92), "lemon": (1.0, 0.72), "cucumber": (2.6, 0.52)}  # half the length and width
VOID = (224, 224, 192)


def draw(seed):
    """An image of fruit and vegetables on a table, lit from above, and the RGB mask of it."""
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
            """Coordinates along and across the body, and how far out a pixel is: 1 on the outline."""
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
        mask[out < 1.08] = VOID
        mask[out < 0.92] = COLORS[name]
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


# %% [markdown]
"""
This is the folder that the package reads: `images/`, `masks/` with the same names, and `classes.txt` with one class a
line. The first class is id 0. With a color behind each name, masks are RGB images, as painting programs save them;
without colors, masks are gray or palette PNGs of ids (0, 1, 2, and 255 for void), as most labeling programs export
them. Masks must not be JPEGs, whose compression changes colors.
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

Two mistakes are easily made, so two are planted here: a mask that was scaled down, and one that a program scaled
smoothly, which mixes colors at the outlines.
"""

# %%
scaled, smooth = photos / "masks" / "table_07.png", photos / "masks" / "table_12.png"
right = {path: Image.open(path).convert("RGB") for path in (scaled, smooth)}
width, height = right[scaled].size
right[scaled].resize((width // 2, height // 2), Image.Resampling.NEAREST).save(scaled)
width, height = right[smooth].size
right[smooth].resize((width // 2, height // 2)).resize((width, height), Image.Resampling.BILINEAR).save(smooth)

run("deeplab-jax data check folder --source photos")

# %% [markdown]
"""
Every image and mask was read, and each mistake is named with its file. `data prepare` makes the same checks and
stops at the first mistake, so that a wrong mask never gets into a training.

The fix is the same for both: export the mask again at the image's size, or scale it with nearest neighbors.
"""

# %%
for path, mask in right.items():
    mask.save(path)

run("deeplab-jax data check folder --source photos")

# %% [markdown]
"""
The table shows more than mistakes. A class that is in a handful of images, or of few pixels, will be learned badly:
label more of it. And each class should be in `val` too, or its score says nothing.

The images were divided by a hash of their names: about a fifth goes to `val`, to be judged on, and adding images
later moves hardly any other. If several of your images show the same thing, do not leave that to chance: list the
names in `train.txt` and `val.txt`, with all images of one thing on one side.

## 4. Prepare

Preparing writes images and masks into files that are read by position, quickly and in any order.
"""

# %%
run("deeplab-jax data prepare folder --source photos --data-dir data")

train_source = data.open_source("folder", "train", data_dir="data")
val_source = data.open_source("folder", "val", data_dir="data")
label_set = val_source.label_set
examples = list(data.decode_examples(val_source, range(len(val_source))))
print(f"{len(train_source)} images to train on, {len(val_source)} to validate on")

# %% [markdown]
"""
Look at some before training: the mask must lie on the image. `deeplab-jax data show folder --data-dir data --output
look.png` draws the same for any prepared data set.
"""

# %%
images, truths = zip(*examples, strict=True)
deeplab_jax.plot_segmentation_mask_gallery(images[:6], y_true=truths[:6], label_set=label_set, cols=3, scale=1.8)

# %% [markdown]
"""
## 5. Fine-tune

`finetune_folder` is the config for this: it starts from the weights that come with the package, with random scales and
crops, left and right mirrored at random, and a learning rate that is lower for the backbone than for the rest. Only the
classifier begins anew: it had 21 other classes. `init="NAME"` takes another network instead.

36 images and 109 steps are what fits into this page. `epochs` counts passes over the training images.
"""

# %%
config = deeplab_jax.load_config("finetune_folder", size=129, batch=8, epochs=30, rate=0.15, init=WEIGHTS)
config.data.data_dir = "data"
config.data.scale_range = (0.75, 1.5)  # the images are small already; for photos leave it at (0.5, 2)
config.checkpoint.every = config.eval.every = "100%"
config.log.tensorboard = False

# %% [markdown]
"""
First the score before: the same weights with the untrained classifier, on the images of `val`. It is the floor that
the training has to leave, not what the weights are worth.
"""

# %%
model, variables = deeplab_jax.from_pretrained(WEIGHTS, label_set.num_classes)
deeplab_jax.save_pretrained("before", model, variables, label_set)
scores_before = deeplab_jax.evaluate("before", config=config)
print(f"mean IoU {scores_before['mean_iou']:.3f} on {scores_before['num_images']} images")

# %%
workdir = pathlib.Path("runs/photos")
scores_after = train(config, workdir, console=console)

# %% [markdown]
"""
The learning rate of 0.15 suits this network and the short training. If the loss rises or turns to NaN, which stops the
run with a message, divide the rate by three; if it hardly falls, multiply it by three.

From a shell such a training is one command, in which any field can be overridden:

```bash
deeplab-jax train --config finetune_folder:size=321,epochs=30 --config.data.data_dir=data --workdir runs/photos
```

## 6. The score

*Intersection over union* (IoU) compares the pixels that have a class with those that were given it; the
[guide](01_guide.ipynb), section 6, takes it apart. The workdir has it too, in `metrics.json` with a gallery and the
curves next to it.
"""

# %%
print(f"{'IoU':12}{'before':>8}{'after':>8}")
for name in label_set.class_names:
    print(f"{name:12}{scores_before['per_class_iou'][name]:8.3f}{scores_after['per_class_iou'][name]:8.3f}")
print(f"{'mean':12}{scores_before['mean_iou']:8.3f}{scores_after['mean_iou']:8.3f}")

# %% [markdown]
"""
A run can be handed on as a folder, which every command takes as `--preset`: `deeplab-jax convert --from workdir
runs/photos --half --output networks/photos`.

A score on so few images moves by points if the images are others: read it as good or bad, not as one network
against another. Look at the images too, and at those of the lowest score first.
"""

# %%
predictor = deeplab_jax.Predictor.from_workdir(workdir)
predictions = predictor(list(images))

shown = slice(0, 4)
deeplab_jax.plot_segmentation_mask_gallery(
    images[shown], y_true=truths[shown], y_pred=predictions[shown], label_set=label_set, cols=2, scale=1.6
)

# %% [markdown]
"""
## 7. New images

The predictor takes images of any size; each mask has the size of its image. The command does the same for a
folder, and writes a mask and an overlay with a legend for each image.
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
## 8. With real photos

- **Images**: JPG or PNG, of any size. Scale very large ones down to about 1,000 pixels first: details that you
  cannot see at the network's crop are not learned. Orientation stored by a phone is respected.
- **Labels**: [labelme](https://github.com/wkentaro/labelme), [CVAT](https://github.com/cvat-ai/cvat) and others export
  masks as PNG. Leave hard outlines void rather than guess. Label everything of a class in an image: what is left out
  teaches the network that it is background.
- **How many**: some dozens are a start. Train, predict the images that are not labeled yet, correct the worst of
  the masks, add them, train again.
- **Size**: `size=321` or `size=513` for the crop. A small object needs some 20 pixels of it.
- **Length**: `epochs=30` to `100`; with few images, steps count more than epochs.
- **Layers**: `--config.optimizer.frozen='("backbone",)'` trains the rest alone, which is quicker and forgets less.
  `--config.model.freeze_norm_statistics=True` helps with batches below 8.
- **Memory**: `--config.train.accumulate_steps=2` computes a batch in two parts, one after the other.
- **Rare classes**: `--config.data.repeat_threshold=0.15` brings images of rare classes more often.
- **Another start**: `deeplab-jax presets` lists others; [04_foreign_weights](04_foreign_weights.ipynb) converts files.
"""
