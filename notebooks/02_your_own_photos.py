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

In this notebook you train a model on images of your own subject. You start from ten photos that were labeled with
[LabelMe](https://github.com/wkentaro/labelme) and the weights that ship with the package. The trained model then labels
twenty new photos, you correct its masks in LabelMe instead of drawing them, and train again with all thirty.

The notebook runs in four to five minutes on two CPU cores. It needs no GPU and no download. It draws its own photos
and writes the files that LabelMe would have written, so that it runs anywhere. Every other step is the same for real
photos, and section 8 lists what to change.

## Setup
"""

# %%
import json
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
## 2. Ten labeled photos

The task of this notebook: where on a table are tomatoes, lemons and cucumbers? In LabelMe you click around each object
and give it a name. The program saves a `.json` file with these polygons beside each photo.

The next cell replaces your camera and LabelMe. It draws small photos of several sizes, and the polygons that somebody
would have clicked. You can skip its code.
"""

# %%
SKINS = {"tomato": (224, 60, 40), "lemon": (245, 205, 50), "cucumber": (60, 150, 60)}
AXES = {"tomato": (1.0, 0.92), "lemon": (1.0, 0.72), "cucumber": (2.6, 0.52)}  # half the length and width


def draw(seed):
    """Draws fruit and vegetables on a table. Returns the photo, and a class name and a polygon for each object."""
    rng = np.random.default_rng(seed)
    height, width = ((144, 192), (192, 144), (160, 160))[seed % 3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grain = cv2.resize(rng.random((height // 2, 6), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    light = 0.75 + 0.35 * (x / width * rng.uniform(-1, 1) + y / height * rng.uniform(-1, 1))
    image = rng.uniform(70, 210, 3) * (light * (0.85 + 0.3 * grain))[..., None]
    shapes = []
    for name in rng.choice(list(AXES), size=rng.integers(3, 7)):
        size, angle = rng.uniform(20, 32), rng.uniform(0, np.pi)
        center = rng.uniform(0.1, 0.9, 2) * (width, height)
        length, breadth = size * np.asarray(AXES[name])
        cosine, sine = np.cos(angle), np.sin(angle)

        dx, dy = x - center[0], y - center[1]
        along, across = (dx * cosine + dy * sine) / length, (dy * cosine - dx * sine) / breadth
        out = np.abs(along) ** 2.4 + across**2  # 1 on the outline
        shadow = cv2.GaussianBlur(np.roll(out < 1.05, (4, 4), (0, 1)).astype(np.float32), (0, 0), 3)
        image *= 1 - 0.5 * shadow[..., None]
        skin = np.asarray(SKINS[name]) * rng.uniform(0.8, 1.1) + rng.normal(0, 8, 3)
        shade = 0.45 + 0.65 * np.sqrt(np.clip(1 - out, 0, 1))
        gloss = 200 * np.exp(-((along + 0.3) ** 2 + (across + 0.35) ** 2) / 0.02)
        image[out < 1] = (skin * shade[..., None] + gloss[..., None])[out < 1]

        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        along = length * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** (2 / 2.4)
        across = breadth * np.sin(turn)
        polygon = center + np.stack([along * cosine - across * sine, along * sine + across * cosine], axis=1)
        shapes.append((name, np.clip(polygon, 0, (width, height))))
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 4, image.shape)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), shapes


def save_shapes(path, size, shapes):
    """Saves the polygons of a photo as LabelMe does."""
    shapes = [{"label": name, "points": polygon.round(1).tolist(), "shape_type": "polygon"} for name, polygon in shapes]
    width, height = size
    values = {"version": "5.5.0", "flags": {}, "imagePath": path.with_suffix(".jpg").name, "imageData": None}
    path.write_text(json.dumps(values | {"shapes": shapes, "imageHeight": height, "imageWidth": width}))


labeled = pathlib.Path("labelme")
labeled.mkdir()
for number in range(10):
    photo, shapes = draw(number)
    photo.save(labeled / f"table_{number:02}.jpg", quality=92)
    save_shapes(labeled / f"table_{number:02}.json", photo.size, shapes)

print(*sorted(path.name for path in labeled.iterdir()))

# %% [markdown]
"""
## 3. Import and check

`data import` draws the polygons as masks. A *mask* is a PNG of the size of its photo, with the class of each pixel.
The same command reads exports of CVAT, Label Studio, Roboflow, YOLO, Supervisely and COCO (`--from`); the page
*Annotation tools* lists them.

The classes go into a file, one name per line. The first is the background: everything that nobody outlined. Without
this file, the names in the annotations are the classes, and a spelling mistake would become a class of its own, as the
next cell shows.
"""

# %%
pathlib.Path("classes.txt").write_text("background\ntomato\nlemon\ncucumber\n")

correct = (labeled / "table_04.json").read_text()
(labeled / "table_04.json").write_text(correct.replace('"cucumber"', '"cucumbr"'))
run("deeplab-jax data import --from labelme labelme --classes classes.txt --output photos")

# %%
(labeled / "table_04.json").write_text(correct)
run("deeplab-jax data import --from labelme labelme --classes classes.txt --output photos")
run("deeplab-jax data check folder --source photos")

# %% [markdown]
"""
`data check` reads every image and mask and reports each problem with its file. The table shows more than mistakes: a
class that appears in few images, or covers few pixels, is hard to learn. Each class should also appear in `val`, or its
score means nothing.

A hash of the file names splits the images: about one in five goes to `val`. If you add images later, hardly any image
changes sides. If several of your images show the same thing, list the names in `photos/train.txt` and `photos/val.txt`
yourself, and keep all images of one thing in one list.

`data prepare` writes images and masks to files that support fast random access. Look at them before you train: do the
masks match the images?
"""

# %%
run("deeplab-jax data prepare folder --source photos --data-dir data")

source = data.open_source("folder", "train", data_dir="data")
images, truths = zip(*data.decode_examples(source, range(len(source))), strict=True)
deeplab_jax.plot_segmentation_mask_gallery(images[:6], y_true=truths[:6], label_set=source.label_set, cols=3, scale=1.8)

# %% [markdown]
"""
## 4. Fine-tune

The config `finetune_folder` reads the classes from the data and starts from the weights that ship with the package. It
scales, crops and flips images at random, and uses a lower learning rate for the backbone. The classifier starts from
random weights, because your classes are new. `init="NAME"` starts from another model.

`epochs` is the number of passes over the training images. With few images, the number of steps matters more.
"""


# %%
def fine_tune(data_dir, epochs):
    """Returns the config of a fine-tuning on a prepared folder."""
    config = deeplab_jax.load_config("finetune_folder", size=129, batch=8, epochs=epochs, rate=0.15, init=WEIGHTS)
    config.data.data_dir = data_dir
    config.data.scale_range = (0.75, 1.5)  # these images are small already; keep (0.5, 2) for photos
    config.checkpoint.every = config.eval.every = "100%"
    config.log.tensorboard = False
    return config


config = fine_tune("data", epochs=100)
scores = deeplab_jax.train(config, "runs/first")

# %% [markdown]
"""
The learning rate of 0.15 suits this model and this short training. If the loss rises or becomes NaN, which stops the
run with a message, divide the rate by three. If the loss hardly falls, multiply it by three.

In a shell, this training is one command, which can override any field:

```bash
deeplab-jax train --config finetune_folder:size=321,epochs=30 --config.data.data_dir=data --workdir runs/first
```

The *intersection over union* (IoU) compares the labeled pixels of a class with its predicted pixels. The
[guide](01_guide.ipynb) explains it in section 6. A score on so few images varies by many points with the choice of
images, so do not choose between models by it yet.

## 5. Let the model label new photos

The model labels twenty photos that nobody has labeled. `predict` writes a mask and an overlay with a legend for each.
"""

# %%
new = pathlib.Path("new_photos")
new.mkdir()
drawn = {number: draw(number) for number in range(100, 120)}
for number, (photo, _) in drawn.items():
    photo.save(new / f"table_{number}.jpg", quality=92)

run("deeplab-jax predict new_photos --workdir runs/first --output predictions")

overlays = [Image.open(path) for path in sorted(pathlib.Path("predictions").glob("*_overlay.png"))[:4]]
sheet = Image.new("RGB", (sum(image.width + 8 for image in overlays), max(image.height for image in overlays)), "white")
for i, image in enumerate(overlays):
    sheet.paste(image, (sum(other.width + 8 for other in overlays[:i]), 0))
sheet

# %% [markdown]
"""
## 6. Correct its masks

`data export` turns masks into polygons with few corners and writes them as LabelMe files beside the photos. For other
tools, use `--to cvat` or `--to coco`.
"""

# %%
run("deeplab-jax data export --to labelme new_photos predictions --classes classes.txt --output to_correct")

# %% [markdown]
"""
Now open the folder `to_correct` in LabelMe, and move or redraw what is wrong. The next cell stands for your hands: it
leaves a photo as it is if every class in it has an IoU of at least 0.8, and redraws the outlines of the others.
"""

# %%
class_names = ["background", *SKINS]
corrected = 0
for number, (photo, shapes) in drawn.items():
    truth = np.zeros(photo.size[::-1], np.uint8)
    for name, polygon in shapes:
        cv2.fillPoly(truth, [polygon.round().astype(np.int32)], class_names.index(name))
    predicted = np.asarray(Image.open(f"predictions/table_{number}_mask.png"))
    present = np.union1d(truth, predicted)
    ious = [np.sum((truth == c) & (predicted == c)) / np.sum((truth == c) | (predicted == c)) for c in present]
    if min(ious) < 0.8:
        save_shapes(pathlib.Path(f"to_correct/table_{number}.json"), photo.size, shapes)
        corrected += 1
print(f"{corrected} of {len(drawn)} photos were corrected")

# %% [markdown]
"""
## 7. Train again

Put the corrected files beside the first ten, import all of them, and train again.
"""

# %%
for path in pathlib.Path("to_correct").iterdir():
    path.rename(labeled / path.name)

run("deeplab-jax data import --from labelme labelme --classes classes.txt --output photos_2")
run("deeplab-jax data prepare folder --source photos_2 --data-dir data_2")

config_2 = fine_tune("data_2", epochs=30)
scores_2 = deeplab_jax.train(config_2, "runs/second")

# %% [markdown]
"""
Both models are scored on the same images, the `val` of all thirty. Neither was trained on them.
"""

# %%
scores_1 = deeplab_jax.evaluate("runs/first", config=config_2)
print(f"{'IoU':12}{'10 photos':>10}{'30 photos':>11}")
for name in class_names:
    print(f"{name:12}{scores_1['per_class_iou'][name]:10.3f}{scores_2['per_class_iou'][name]:11.3f}")
print(f"{'mean':12}{scores_1['mean_iou']:10.3f}{scores_2['mean_iou']:11.3f}")

# %% [markdown]
"""
Look at the predictions too, and start with the images that have the lowest scores. Then let this model label the next
photos: the better it gets, the less there is to correct.
"""

# %%
source = data.open_source("folder", "val", data_dir="data_2")
images, truths = zip(*data.decode_examples(source, range(len(source))), strict=True)
predictor = deeplab_jax.Predictor.from_pretrained("runs/second")
predictions = [result.label_map for result in predictor(images)]
deeplab_jax.plot_segmentation_mask_gallery(
    images[:4], y_true=truths[:4], y_pred=predictions[:4], label_set=source.label_set, cols=2, scale=1.6
)

# %% [markdown]
"""
To share a trained model, convert the run to a folder that every command accepts as `--preset`: `deeplab-jax convert
--from workdir runs/second --half --output networks/photos`.

## 8. Real photos

- **Images**: JPEG or PNG, of any size. Scale very large ones down to about 1,000 pixels first: the model cannot learn
  details that you cannot see at the size of its crop. The orientation that a phone stores is respected.
- **Labels**: give uncertain outlines the name `__ignore__`; they count neither in the loss nor in the scores. Label
  every object of a class in an image: unlabeled objects teach the model that they are background. If you have masks
  instead of polygons, put them beside the images: the page *Data* has the layout.
- **How many**: ten are enough to start the loop of this notebook, and a few dozen per class to rely on the result.
- **Size**: `size=321` or `size=513` for the crop. A small object should cover about 20 pixels of it.
- **Length**: `epochs=30` to `100`.
- **Frozen layers**: `--config.optimizer.frozen='("backbone",)'` trains only the other parts. It is faster and forgets
  less. `--config.model.freeze_norm_statistics=True` helps with batch sizes below 8.
- **Memory**: `--config.train.accumulate_steps=2` computes a batch in two parts, one after the other.
- **Rare classes**: `--config.data.repeat_threshold=0.15` oversamples images with rare classes.
- **Other weights**: `deeplab-jax presets` lists pretrained models, and the notebook [Weights from other
  frameworks](04_foreign_weights.ipynb) converts files.
"""
