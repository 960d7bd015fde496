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
# Guide: semantic segmentation in Python

In this notebook you train a DeepLabv3+ model, score it class by class on images it has never seen, and look at the
masks it predicts. You also see every piece involved: data, augmentation, model, train step and metrics.

The notebook runs in about three minutes on two CPU cores. It needs no GPU and no download, because the package
generates its data: synthetic scenes. Section 2 shows how to switch to real photos.

Semantic segmentation assigns a class to every pixel. DeepLabv3+ has three parts. The *backbone*, a classification
network without its last layers, turns the image into a coarse grid of features. *Atrous spatial pyramid pooling*
(ASPP) applies dilated convolutions with several rates to that grid, so that each cell sees its near and its far
surroundings. A small *decoder* adds an early, high-resolution layer of the backbone to recover object boundaries. The
papers are [Rethinking Atrous Convolution](https://arxiv.org/abs/1706.05587) (DeepLabv3) and [Encoder-Decoder with
Atrous Separable Convolution](https://arxiv.org/abs/1802.02611) (DeepLabv3+).

The sections follow the Keras guide
[Semantic Segmentation with KerasCV](https://keras.io/guides/keras_cv/semantic_segmentation_deeplab_v3_plus/).
If you know Keras, this table translates:

| Keras | deeplab_jax |
|---|---|
| `DeepLabV3Plus(...)` | `build_model(config.model, num_classes)`; the weights are separate, in `variables` |
| `model.compile(...)` | `optimizer.make`, `make_loss` and `make_train_step` |
| `model.fit(...)` | `deeplab_jax.train(config, workdir)` |
| `model.evaluate(...)` | `deeplab_jax.evaluate(workdir)` |
| `model.predict(...)` | `Predictor.from_pretrained(workdir)(images)` |
| `model.summary()` | `summary_table(config, num_classes)` |

## Setup
"""

# %%
import json
import logging
import pathlib
import sys
import tempfile

import jax
import matplotlib
import numpy as np
from PIL import Image
from rich.console import Console

import deeplab_jax
from deeplab_jax import data, visualization
from deeplab_jax.analysis.summary import summary_table
from deeplab_jax.config import duration_steps
from deeplab_jax.evaluation.metrics import confusion_matrix, scores
from deeplab_jax.labels import IGNORE_LABEL
from deeplab_jax.losses import make_loss
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.training import optimizer as optimizer_lib
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step

matplotlib.rcParams["savefig.dpi"] = 70  # small images for a small notebook
console = Console(width=96, force_jupyter=False, force_terminal=False, no_color=True)  # prints tables as text

# The library reports with `logging`. Show its messages here, and only here.
logger = logging.getLogger("deeplab_jax")
logger.setLevel(logging.INFO)
logger.addHandler(logging.StreamHandler(sys.stdout))
logger.propagate = False

# %% [markdown]
"""
## 1. Train and predict

Three calls do the whole job: load a config, train, predict. A *config* is a tree of values that describes an
experiment completely. `quickstart` is built in; this notebook trains it for fewer steps.

A *workdir* is the folder of one training run, with its checkpoints, scores and curves. This notebook uses a temporary
folder. Yours could be `runs/my_first`.
"""

# %%
workdir = pathlib.Path(tempfile.mkdtemp()) / "guide"

config = deeplab_jax.load_config("quickstart", steps=350)
config.eval.every = "25%"
config.log.tensorboard = False

results = deeplab_jax.train(config, workdir)

# %% [markdown]
"""
The first line shows no speed, because most of its time went into compilation: JAX compiles the train step into one
program. The loss falls and the mean IoU, which section 6 explains, rises.

Now the trained model labels an image of the validation split. An image is a uint8 array (height, width, 3) of RGB
values from 0 to 255. The model normalizes it.
"""

# %%
predictor = deeplab_jax.Predictor.from_pretrained(workdir)

val_source = data.open_source("synthetic", "val", image_size=config.data.image_size)
example = val_source[3]
result = predictor(example["image"])
print(f"image {example['image'].shape} {example['image'].dtype}")
print(f"label_map {result.label_map.shape} {result.label_map.dtype}")
print(result)

deeplab_jax.plot_segmentation_mask_gallery(
    [example["image"]], y_pred=[result.label_map], label_set=predictor.label_set, scale=2
)

# %% [markdown]
"""
The rest of this notebook takes these three calls apart.

## 2. Data

A source is one split of a data set. Index it to get an example, a dict with `image`, `label` and `id`. The `label` is
an array of class ids, one per pixel. The synthetic scenes show five kinds of shapes on a cloudy background. The
outline and the kind of texture determine the class; color, size and angle do not.
"""

# %%
train_source = data.open_source("synthetic", "train", image_size=config.data.image_size)
label_set = train_source.label_set
print(f"{len(train_source)} training scenes, {len(val_source)} validation scenes")
print("classes:", ", ".join(f"{i} {name}" for i, name in enumerate(label_set.class_names)))
print("ids in the first label:", np.unique(train_source[0]["label"]))

# %% [markdown]
"""
The last id, 255, is the *ignore label*: it marks pixels that are not annotated. In these scenes they form a thin
line around every shape, as in Pascal VOC, where annotators left out uncertain outlines. Ignored pixels count neither
in the loss nor in the scores.

`train_batches` is the input pipeline: an endless stream of shuffled batches, here without augmentation. The order of
the examples depends only on the seed and the position in the stream, so an interrupted run resumes exactly where it
stopped.
"""


# %%
def first_batch(random_flip):
    """Returns the first batch of the training stream with the given flips."""
    settings = config.data.copy_and_resolve_references()
    settings.random_flip = random_flip
    return next(data.train_batches(train_source, settings, seed=config.train.seed))


batch = first_batch("none")
print({name: (array.shape, str(array.dtype)) for name, array in batch.items()})

deeplab_jax.plot_segmentation_mask_gallery(
    batch["image"][:4], y_true=batch["label"][:4], label_set=label_set, cols=4, scale=1.5
)

# %% [markdown]
"""
**Real photos.** The Keras guide trains on the Semantic Boundaries Dataset (SBD), which has 8,498 training photos
with the 21 classes of Pascal VOC. Two lines switch to it, one in the shell and one in Python:

```
deeplab-jax data prepare sbd
```

```python
config = deeplab_jax.load_config("kerascv_guide")
```

The first downloads the archive (1.4 GB) and writes the images to files that support random access. The second loads
the experiment of the Keras guide, which needs a GPU. `load_config("kerascv_guide", size=256, batch=4, steps=300)` is
a smaller version with smaller images and fewer steps.
"""

# %% [markdown]
"""
## 3. Augmentation

A flipped photo is a new training example, if its label is flipped too. The pipeline transforms both with the same
random numbers. `data.random_flip` is `none`, `horizontal` (as in the Keras guide, since photos have an up and a
down), or `horizontal_and_vertical`, which suits these shapes.

The same seed gives the same scenes as above. Each direction is flipped with a probability of one half.
"""

# %%
flipped = first_batch("horizontal_and_vertical")

deeplab_jax.plot_segmentation_mask_gallery(
    flipped["image"][:4], y_true=flipped["label"][:4], label_set=label_set, cols=4, scale=1.5
)

# %% [markdown]
"""
`config.data.resize = "scale_crop"` is the augmentation of the papers: scale the image by a random factor between 0.5
and 2, then crop it at random. Padding gets the ignore label.
"""

# %% [markdown]
"""
## 4. Model and config

First the model of the Keras guide: a ResNet50V2 backbone, 512x512 images and 21 classes. `summary_table` counts
parameters and multiply-adds without running the model. The total of 39,191,488 parameters is the number that Keras
prints.
"""

# %%
guide = deeplab_jax.load_config("kerascv_guide")
console.print(summary_table(guide, num_classes=21))

# %% [markdown]
"""
*Multiply-adds* measure the work for one image. *Nominal* counts the layers in the order of the papers. *Executed* is
smaller: a 1x1 convolution and bilinear upsampling can be swapped without changing the result, so the model classifies
small feature maps and upsamples the logits.

The model of this notebook has the same parts at a smaller scale.
"""

# %%
console.print(summary_table(config, num_classes=label_set.num_classes))

# %% [markdown]
"""
### Learning rate

`optimizer.make` builds the optimizer and its learning rate schedule. Both experiments use a cosine schedule: the rate
starts high and falls smoothly to zero. The Keras guide starts at 0.007 x 4 / 16 = 0.00175 for its batch size of four,
and ends after 2,124 steps, one pass over SBD.
"""

# %%
guide_steps = duration_steps(guide.train.duration, field="train.duration", batch_size=4, num_examples=8498)
_, guide_schedule = optimizer_lib.make(guide.optimizer, guide_steps, parts=PARTS)
visualization.plot_learning_rate(guide_schedule, guide_steps)

# %% [markdown]
"""
The model of this notebook starts from random weights and takes much larger steps. Its learning rate rises from zero
during the first 5 % of the training, the *warm-up*.
"""

# %%
sizes = {"batch_size": config.data.batch_size, "num_examples": len(train_source)}
total_steps = duration_steps(config.train.duration, field="train.duration", **sizes)
warmup_steps = duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total_steps, **sizes)
optimizer, schedule = optimizer_lib.make(config.optimizer, total_steps, warmup_steps, parts=PARTS)
visualization.plot_learning_rate(schedule, total_steps)

# %% [markdown]
"""
### The model as a function

A Flax module holds no weights. `init` creates them from a random key, and `apply` computes with them. Both are pure
functions that `jax.jit` can compile. `variables` has two collections: `params`, which are trained, and `batch_stats`,
the running means and variances of BatchNorm.

`apply` returns logits and endpoints. The *logits* are one score per class and pixel, at the size of the image. The
*endpoints* are intermediate layers by name.
"""

# %%
model = build_model(config.model, label_set.num_classes)
variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), batch["image"], train=False)
logits, endpoints = jax.jit(model.apply, static_argnames="train")(variables, batch["image"], train=False)

print(f"{'images':20}{batch['image'].shape}")
for name in ("stage1", "stage2", "stage3", "stage4", "aspp", "low_level_features", "decoder", "logits"):
    print(f"{name:20}{endpoints[name].shape}")
print(f"{'upsampled logits':20}{logits.shape}")

# %% [markdown]
"""
The *output stride* is the ratio of image size to feature size. Here it is 8, and 64 / 8 = 8. For an output stride of
8 or 16 instead of 32, the backbone stops shrinking the features and dilates its convolutions instead, with the same
weights. Set `config.model.output_stride` to change it.
"""

# %% [markdown]
"""
## 5. Training

Training consists of four pieces, which take ten lines to put together:

- an **optimizer** that turns gradients into updates: stochastic gradient descent with momentum, clipping and weight
  decay, as configured by `config.optimizer`;
- a **loss** that returns a sum and a valid count instead of a mean, so that ignored pixels do not count and means
  over many devices are exact;
- a **state** with everything a train step reads and updates: parameters, statistics, momentum and step;
- a **train step**, a pure function from a state and a batch to the next state and a report.
"""

# %%
loss_fn = make_loss(config.loss, num_classes=label_set.num_classes)
state = jax.jit(lambda: TrainState.create(model, optimizer, seed=config.train.seed))()
train_step = jax.jit(make_train_step(model, optimizer, loss_fn, learning_rate=schedule), donate_argnums=0)

loss_sum, loss_count = 0.0, 0
batches = data.train_batches(train_source, config.data, seed=config.train.seed)
for _ in range(config.log.every_steps):
    batch = next(batches)
    state, report = train_step(state, {name: batch[name] for name in ("image", "label")})
    loss_sum, loss_count = loss_sum + float(report["loss_sum"]), loss_count + int(report["loss_count"])
batches.close()

print(f"{int(state.step)} steps: mean loss {loss_sum / loss_count:.4f}")

# %% [markdown]
"""
`train` ran the same steps in section 1, with logging, checkpoints and evaluation. Both runs started from the same
seed, so the first line of the log shows the same loss except for rounding errors. `metrics.jsonl` has one line of
JSON per report.
"""

# %%
log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
print({name: log[0][name] for name in ("step", "loss", "mean_iou", "learning_rate")})

visualization.plot_curves(workdir / "metrics.jsonl")

# %% [markdown]
"""
This training is short on purpose: the model finds shapes before it can tell them all apart. The built-in config
trains for 900 steps, and the README shows its predictions:

```
deeplab-jax train --config quickstart --workdir runs/quickstart
```

The command line overrides any field, for example `--config.data.batch_size=16`. Run the same command again to resume
an interrupted run.
"""

# %% [markdown]
"""
## 6. Evaluation

The *intersection over union* (IoU) of a class compares its labeled pixels with its predicted pixels: the number of
pixels in both, divided by the number of pixels in either. Unlike accuracy, IoU does not reward predicting background
everywhere. Papers compare the *mean IoU* over all classes.

`evaluate` scores the newest checkpoint on every image of the split, exactly once, with integer counts. If the number
of images differs from the size of the split, it raises an error.
"""

# %%
results = deeplab_jax.evaluate(workdir)

print(f"{'class':14}{'IoU':>6}")
for name, iou in results["per_class_iou"].items():
    print(f"{name:14}{iou:6.3f}")
print(f"{'mean IoU':14}{results['mean_iou']:6.3f}")
print(f"{'accuracy':14}{results['pixel_accuracy']:6.3f}   on {results['num_images']} images")

# %% [markdown]
"""
### Why the ignore label matters

You can also compute the scores yourself: label each image, count pairs of true and predicted class in a *confusion
matrix*, and divide.

The mean IoU above excludes ignored pixels. Keras's `MeanIoU` on one-hot labels cannot exclude them: the one-hot
vector of an ignored pixel is all zeros, its argmax is 0, and so it counts as background. On the outline of a disk,
the prediction "disk" then counts as an error.
"""

# %%
examples = [val_source[i] for i in range(len(val_source))]
truths = np.stack([example["label"] for example in examples])
predictions = np.stack([result.label_map for result in predictor([example["image"] for example in examples])])

print(f"{100 * np.mean(truths == IGNORE_LABEL):.1f} % of the pixels are ignored")
for ignored_pixels in ("exclude", "background"):
    confusion = confusion_matrix(truths, predictions, num_classes=label_set.num_classes, ignored_pixels=ignored_pixels)
    counted = scores(np.asarray(confusion, np.int64), label_set.class_names)
    print(f"{ignored_pixels:12}mean IoU {counted['mean_iou']:.3f}, accuracy {counted['pixel_accuracy']:.3f}")

# %% [markdown]
"""
The predictions are the same; only the counts differ. Two scores are comparable only if both treat ignored pixels in
the same way. Set `config.eval.ignored_pixels` to `exclude`, or to `background` to reproduce the scores of the Keras
guide.
"""

# %% [markdown]
"""
## 7. Prediction

Compare image, label and prediction. Look for shapes that the model finds but assigns to the wrong class: a shape that
is cut off by the border or by another shape has little outline left.
"""

# %%
shown = slice(0, 8)
deeplab_jax.plot_segmentation_mask_gallery(
    [example["image"] for example in examples[shown]],
    y_true=truths[shown],
    y_pred=predictions[shown],
    label_set=label_set,
    cols=2,
    scale=1.5,
)

# %% [markdown]
"""
The predictor accepts images of any size, and each prediction has the size of its image. `overlay` draws a prediction
on the image, and `add_legend` adds the names and shares of the classes.
"""

# %%
large = data.open_source("synthetic", "val", image_size=(192, 192))[5]["image"]
result = predictor(large)
print(f"image {large.shape[:2]}, label_map {result.label_map.shape}")

overlay = visualization.overlay(large, result.label_map, predictor.label_set)
Image.fromarray(visualization.add_legend(overlay, result.label_map, predictor.label_set))

# %% [markdown]
"""
For files, use the command line. It writes a mask and an overlay with a legend for every image of a folder:

```
deeplab-jax predict my_images --workdir runs/quickstart --output my_masks
```
"""

# %% [markdown]
"""
## 8. Next steps

- **The Keras guide at full size.** `kerascv_guide` trains on SBD at 512x512 with the optimizer, loss and metric of
  the Keras guide. Set `train.init_from=resnet50_v2_imagenet` to start from the guide's ImageNet weights.
- **Your own photos.** The notebook [Your own photos](02_your_own_photos.ipynb) trains on a folder of images and
  masks.
- **Finer masks.** `--config.model.output_stride=8` computes features at twice the resolution of 16, with the same
  weights. It takes more time and memory.
- **Other models.** `config.model.backbone` selects ResNets, MobileNetV2 or EfficientNet-Lite. The other fields of
  `config.model` cover DeepLabv3 and the variants of DeepLabv3+ of the papers, Keras and PyTorch.

The Keras guide ends with SegFormer, a transformer architecture. deeplab_jax does not include it.
"""
