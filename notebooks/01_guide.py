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
# Semantic segmentation with deeplab_jax

At the end of this page you will have a DeepLabv3+ that you trained yourself, its score on images it has never
seen, class by class, and the masks it draws. You will also have seen every piece that took part: the data, the
augmentation, the network, the training step and the score.

Running the whole page takes about three minutes on two processor cores. It needs no GPU and downloads nothing: the
data are scenes that the package draws itself. Section 2 says what to change for real photographs.

Semantic segmentation gives every pixel a class. DeepLabv3+ does it in three moves. A classification network without
its last layers, the *backbone*, turns the image into a coarse grid of features. *Atrous spatial pyramid pooling*
(ASPP) looks at that grid through convolutions with holes of several widths, so that each cell sees its near and its
far surroundings. A small *decoder* adds an early, fine-grained layer of the backbone to bring the outlines back. The
papers are [Rethinking Atrous Convolution](https://arxiv.org/abs/1706.05587) (DeepLabv3) and
[Encoder-Decoder with Atrous Separable Convolution](https://arxiv.org/abs/1802.02611) (DeepLabv3+).

The sections follow the Keras guide
[Semantic Segmentation with KerasCV](https://keras.io/guides/keras_cv/semantic_segmentation_deeplab_v3_plus/).
If you know Keras, this is the dictionary:

| Keras | here |
|---|---|
| `DeepLabV3Plus(...)` | `build_model(config.model, num_classes)`; the weights live outside, in `variables` |
| `model.compile(...)` | `optimizer.make`, `make_loss` and `make_train_step`, which you can also call by hand |
| `model.fit(...)` | `train(config, workdir)` |
| `model.evaluate(...)` | `evaluate(workdir)` |
| `model.predict(...)` | `Predictor.from_pretrained(workdir)(images)` |
| `model.summary()` | `summary_table(config, num_classes)` |

## Setup
"""

# %%
import json
import pathlib
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
from deeplab_jax.training.loop import train
from deeplab_jax.training.optimizer import make_schedule
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step

matplotlib.rcParams["savefig.dpi"] = 70  # small images for a small notebook
console = Console(width=112, force_jupyter=False, force_terminal=False, no_color=True)  # plain text

# %% [markdown]
"""
## 1. Perform segmentation with a trained model

Three calls are the whole job: read a config, train, predict. A *config* is a tree of plain values that describes an
experiment completely; `quickstart` comes with the package. To keep this page short, it trains for fewer steps here.

A *workdir* is the folder of one training run. Everything the run leaves is in it: checkpoints, scores, curves.
This page uses a temporary one; yours would be something like `runs/my_first`.
"""

# %%
workdir = pathlib.Path(tempfile.mkdtemp()) / "guide"

config = deeplab_jax.load_config("quickstart", steps=350)
config.eval.every = "25%"
config.log.tensorboard = False

results = train(config, workdir, console=console)

# %% [markdown]
"""
The first line has no speed because most of that time went into compiling: JAX turns the training step into one
program for the processor, once. The loss falls and the mean IoU, the score explained in section 6, rises.

Now the network labels an image of the validation split, which the training never touched. An image is a `uint8`
array (height, width, 3) of red, green and blue from 0 to 255. There is nothing to normalize: that happens inside the
network.
"""

# %%
predictor = deeplab_jax.Predictor.from_pretrained(workdir)

val_source = data.open_source("synthetic", "val", image_size=config.data.image_size)
example = val_source[3]
mask = predictor(example["image"]).label_map
print(f"image {example['image'].shape} {example['image'].dtype}, mask {mask.shape} {mask.dtype}")

deeplab_jax.plot_segmentation_mask_gallery([example["image"]], y_pred=[mask], label_set=predictor.label_set, scale=2)

# %% [markdown]
"""
That was the short way. The rest of this page takes it apart.

## 2. The data

A source is one split of a data set. You read it by position, and an example has an `image`, a `label` and an `id`.
The `label` is a map of class ids, one for each pixel. The embedded scenes have five shapes on cloudy ground; the
outline and the kind of texture tell the class, while color, size and angle tell nothing.
"""

# %%
train_source = data.open_source("synthetic", "train", image_size=config.data.image_size)
label_set = train_source.label_set
print(f"{len(train_source)} scenes to train on, {len(val_source)} to validate on")
print("classes:", ", ".join(f"{i} {name}" for i, name in enumerate(label_set.class_names)))
print("ids in the first label map:", np.unique(train_source[0]["label"]))

# %% [markdown]
"""
The last id is 255. It is no class but *void*: pixels that nobody annotated. In these scenes it is a thin line around
every shape, as in Pascal VOC, where annotators left out the outlines that they could not place to the pixel. Void
keeps this one id from the file to the score; the network neither learns from it nor is judged on it.

`train_batches` is the input pipeline: an endless stream of shuffled batches, here still without augmentation. Which
example comes when depends on the seed and the position in the stream alone, so that a run that was interrupted goes
on exactly where it stopped.
"""


# %%
def first_batch(random_flip):
    """The first batch of the training stream, with the given flips."""
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
**Real photographs.** The Keras guide trains on the Semantic Boundaries Dataset (SBD): 8,498 photographs to train on,
in the 21 classes of Pascal VOC. Two lines switch to it, one for the shell and one for Python:

```
deeplab-jax data prepare sbd
```

```python
config = deeplab_jax.load_config("kerascv_guide")
```

The first downloads the archive (1.4 GB) and writes the images in a form that can be read by position. The second
loads the Keras guide's experiment; it wants a GPU. `load_config("kerascv_guide", size=256, batch=4, steps=300)` is
the same with smaller images and fewer steps.
"""

# %% [markdown]
"""
## 3. Augmentation

A mirrored photograph is a new photograph with a known answer, as long as the label map is mirrored with it. The
pipeline does both with one throw of the dice. `data.random_flip` is `none`, `horizontal` (the Keras guide's choice,
for photographs have an up and a down) or `horizontal_and_vertical`, which suits shapes at any angle.

The same seed brings the same scenes as above; each direction is drawn for each scene, with even chances.
"""

# %%
flipped = first_batch("horizontal_and_vertical")

deeplab_jax.plot_segmentation_mask_gallery(
    flipped["image"][:4], y_true=flipped["label"][:4], label_set=label_set, cols=4, scale=1.5
)

# %% [markdown]
"""
`config.data.resize = "scale_crop"` is the papers' augmentation: scale by a random factor between 0.5 and 2, then cut
out a window. What padding adds is void.
"""

# %% [markdown]
"""
## 4. The model and its configuration

The Keras guide's network first: a ResNet50 of the second version as the backbone, images of 512x512 pixels, 21
classes. The table counts each part without computing anything, so it takes a second even for a large network. The
sum is the 39,191,488 parameters that Keras prints for the guide's model.
"""

# %%
guide = deeplab_jax.load_config("kerascv_guide")
console.print(summary_table(guide, num_classes=21))

# %% [markdown]
"""
*Multiply-adds* are the work for one image. The *nominal* column counts the layers in the order in which the papers
draw them. The *executed* column is smaller: a 1x1 convolution and a bilinear enlargement can trade places without
changing the result, so the network classifies small maps and enlarges the result, instead of the other way round.

The network of this page has the same parts on a smaller scale.
"""

# %%
console.print(summary_table(config, num_classes=label_set.num_classes))

# %% [markdown]
"""
### The learning rate

Both experiments use a cosine: the rate starts high and falls smoothly to zero at the last step. The Keras guide
starts at 0.007 x 4 / 16 = 0.00175 for its batches of four, and ends after 2,124 steps, one pass over SBD.
"""

# %%
guide_steps = duration_steps(guide.train.duration, field="train.duration", batch_size=4, num_examples=8498)
visualization.plot_learning_rate(make_schedule(guide.optimizer, guide_steps), guide_steps)

# %% [markdown]
"""
This page's network starts from random weights and takes much larger steps, so its rate rises from zero during the
first twentieth of the training: the *warm-up*.
"""

# %%
sizes = {"batch_size": config.data.batch_size, "num_examples": len(train_source)}
total_steps = duration_steps(config.train.duration, field="train.duration", **sizes)
warmup_steps = duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total_steps, **sizes)
optimizer, schedule = optimizer_lib.make(config.optimizer, total_steps, warmup_steps, parts=PARTS)
visualization.plot_learning_rate(schedule, total_steps)

# %% [markdown]
"""
### The network as a function

A Flax module holds no weights. `init` makes them from a random key, `apply` computes with them, and both are pure
functions that `jax.jit` can compile. There are two kinds of `variables`: `params`, which learn, and `batch_stats`,
the running means and variances of batch normalization.

`apply` returns two things. The *logits* are one score for each class at each pixel, at the image's own size; the
largest one is the prediction. The *endpoints* are the layers along the way, by name.
"""

# %%
model = build_model(config.model, label_set.num_classes)
variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), batch["image"], train=False)
logits, endpoints = jax.jit(model.apply, static_argnames="train")(variables, batch["image"], train=False)

print(f"{'images':20}{batch['image'].shape}")
for name in ("stage1", "stage2", "stage3", "stage4", "aspp", "low_level_features", "decoder", "logits"):
    print(f"{name:20}{endpoints[name].shape}")
print(f"{'logits, enlarged':20}{logits.shape}")

# %% [markdown]
"""
The *output stride* is how much coarser the features are than the image: 64 / 8 = 8 here. A stride of 8 or 16
instead of 32 is where the convolutions with holes come in: the backbone stops shrinking the image and widens its
filters instead, with the very same weights. `config.model.output_stride` sets it.
"""

# %% [markdown]
"""
## 5. Training

What `model.compile` and `model.fit` do in Keras is four pieces here. Put together by hand they are ten lines, and
nothing is hidden in them:

- an **optimizer**, a function from gradients to updates: stochastic gradient descent with momentum, clipping and
  weight decay, as `config.optimizer` says;
- a **loss**, which returns a sum and a count instead of a mean, so that void pixels count for nothing and means
  are exact over any number of devices;
- a **state**: parameters, statistics, momentum and step, everything that a step reads and writes;
- a **step**, a pure function from a state and a batch to the next state and a report.
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

print(f"{int(state.step)} steps by hand: mean loss {loss_sum / loss_count:.4f}")

# %% [markdown]
"""
This is what `train` ran in section 1, with logs, checkpoints and evaluations around it. Both started from the same
seed, so the first line of the run's log tells the same loss, but for rounding: two compiled programs round differently,
and every step magnifies the difference. `metrics.jsonl` has one line of JSON for each report.
"""

# %%
log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
print({name: log[0][name] for name in ("step", "loss", "mean_iou", "learning_rate")})

visualization.plot_curves(workdir / "metrics.jsonl")

# %% [markdown]
"""
This training is short on purpose: it finds where shapes are before it can tell them all apart. The config as it comes
trains for 900 steps, and the README shows what it draws:

```
deeplab-jax train --config quickstart --workdir runs/quickstart
```

Any field of a config can be changed there too, for instance `--config.data.batch_size=16`. The same command continues a
run that was stopped.
"""

# %% [markdown]
"""
## 6. Evaluation

The *intersection over union* (IoU) of a class compares the pixels that have the class with the pixels that were
given it: how many are in both, divided by how many are in either. Unlike plain accuracy it cannot be won by
calling everything background. The mean over the classes is the *mean IoU*, the number that papers compare.

`evaluate` scores the newest checkpoint on every image of the split exactly once. It counts pixels in
integers, and a score that rests on another number of images than the split has is an error.
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
### Why void matters

The score can also be taken by hand: label each image, count pairs of true and predicted class into a *confusion
matrix*, and divide. That shows what happens to void.

The mean above leaves void pixels out. Keras' `MeanIoU` on one-hot labels cannot: the label of a void pixel is a row
of zeros, whose largest entry is at position 0, so it counts as background. On the outline of a shape the network has
every right to say "disk", and is marked down for it.
"""

# %%
examples = [val_source[i] for i in range(len(val_source))]
truths = np.stack([example["label"] for example in examples])
predictions = np.stack([result.label_map for result in predictor([example["image"] for example in examples])])

print(f"{100 * np.mean(truths == IGNORE_LABEL):.1f} % of the pixels are void")
for void in ("ignore", "background"):
    confusion = confusion_matrix(truths, predictions, num_classes=label_set.num_classes, void=void)
    counted = scores(np.asarray(confusion, np.int64), label_set.class_names)
    print(f"void={void!r:14}mean IoU {counted['mean_iou']:.3f}, accuracy {counted['pixel_accuracy']:.3f}")

# %% [markdown]
"""
The predictions are the same; only the count differs. Two scores can be compared only if both treat void alike, so
`config.eval.ignored_pixels` is a setting: `exclude`, or `background` to repeat the Keras guide's number.
"""

# %% [markdown]
"""
## 7. Prediction

Image, truth and prediction side by side say more than a score. Look for masks that are right about the place and
wrong about the name. Color and texture are no help here, and a shape that the edge or another shape cuts off has
little outline left to tell it by.
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
The predictor takes images of any size, and each mask comes back at the size of its image. `overlay` tints an image
with its mask, and `add_legend` writes the names and shares of the classes under it.
"""

# %%
large = data.open_source("synthetic", "val", image_size=(192, 192))[5]["image"]
mask = predictor(large).label_map
print(f"image {large.shape[:2]}, mask {mask.shape}")

tinted = visualization.overlay(large, mask, predictor.label_set)
Image.fromarray(visualization.add_legend(tinted, mask, predictor.label_set))

# %% [markdown]
"""
For files there is a command, which writes a mask and an overlay with its legend for each image of a folder:

```
deeplab-jax predict my_images --workdir runs/quickstart --output my_masks
```
"""

# %% [markdown]
"""
## 8. Where to go next

- **The real thing.** `kerascv_guide` trains on SBD at 512x512, with the Keras guide's optimizer, loss and metric to
  the letter. It starts from random weights unless `train.init_from` names a preset (`resnet50_v2_imagenet` is what the
  guide starts from) or the workdir of an earlier run.
- **Your own photographs.** Put images into `my_photos/images`, masks of the same names into `my_photos/masks` and the
  class names, one a line, into `my_photos/classes.txt`. Then run `deeplab-jax data prepare folder --source my_photos`
  and train with the config `finetune_folder`.
- **Finer masks.** `--config.model.output_stride=8` computes features on a grid twice as fine as 16 does, with the
  same weights; it costs time and memory.
- **Another network.** `config.model.backbone` takes ResNets of 50, 101 and 152 layers, and the other fields of
  `config.model` span DeepLabv3 and the variants of DeepLabv3+ that the papers, Keras and PyTorch use.

The Keras guide closes with SegFormer, a newer family built from transformers. It is not part of this project.
"""
