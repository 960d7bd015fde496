"""Experiment configs: the schema, typed arguments, durations, and validation before any device work.

A config file in `configs/` defines `get_config(arg=None)`, starts from `base_config()` and sets values. Fields that
the schema leaves empty are placeholders: typed, None until set, and settable from the command line.
"""

import ast
import difflib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from deeplab_jax.errors import UserError

_DURATION_UNITS = ("steps", "epochs", "examples", "percent")


def base_config() -> ConfigDict:
    """Every field there is, with the value that switches the feature off or leaves it to the experiment."""
    config = ConfigDict()

    config.model = model = ConfigDict()
    model.backbone = config_dict.placeholder(str)  # a name of deeplab_jax.models.BACKBONES
    model.in_channels = 3
    model.output_stride = 16  # 8, 16 or 32, by atrous conversion with the same parameters
    model.multi_grid = ()  # rate multipliers of the last stage's units; () is all ones
    model.atrous_rates = (6, 12, 18)
    model.atrous_rates_stride = 16  # the output stride `atrous_rates` are stated for; they scale with the real one
    model.aspp_channels = 256
    model.aspp_separable = False
    model.image_pooling = True
    model.aspp_dropout = 0.0
    model.decoder = "paper"  # paper | separable | kerascv | none (DeepLabv3)
    model.decoder_channels = 256
    model.low_level_channels = 48
    model.decoder_dropout = 0.0
    model.classifier_bias = True
    model.kernel_init = "he_normal"  # he_normal | glorot_uniform (Keras)
    model.backbone_norm_epsilon = 1e-5
    model.backbone_norm_decay = 0.9
    model.head_norm_epsilon = 1e-5
    model.head_norm_decay = 0.9
    model.freeze_norm_statistics = False  # BatchNorm uses its running statistics while training too
    model.padding = "symmetric"  # symmetric (PyTorch, the papers) | same_upper (TensorFlow)
    model.align_corners = False  # half-pixel bilinear resizing unless True
    model.input_mean = (123.675, 116.28, 103.53)  # RGB of range 0-255
    model.input_std = (58.395, 57.12, 57.375)

    config.data = data = ConfigDict()
    data.name = config_dict.placeholder(str)  # a name of deeplab_jax.data.SOURCES
    data.data_dir = config_dict.placeholder(str)  # default: $DEEPLAB_JAX_DATA or ~/deeplab_jax_data
    data.train_split = "train"
    data.eval_split = "val"
    data.batch_size = config_dict.placeholder(int)  # global, over all devices and processes
    data.image_size = config_dict.placeholder(tuple)  # (height, width) that the network trains on
    data.resize = "squeeze"  # squeeze: plain resize to image_size | scale_crop: random scale, pad, crop
    data.scale_range = (0.5, 2.0)  # of scale_crop
    data.scale_step = 0.25  # of scale_crop; 0 draws from the whole range
    data.random_flip = "horizontal"  # none | horizontal | horizontal_and_vertical
    data.workers = 0  # processes that read and transform; 0 uses threads of this one
    data.num_examples = config_dict.placeholder(int)  # per split, of generated data sets only

    config.train = train = ConfigDict()
    train.steps = config_dict.placeholder(int)  # one of steps, epochs, examples
    train.epochs = config_dict.placeholder(float)
    train.examples = config_dict.placeholder(int)
    train.seed = 0
    train.compute_dtype = "float32"  # float32 | bfloat16; parameters, statistics, logits, loss stay float32
    train.init_from = config_dict.placeholder(str)  # a workdir whose parameters start this run

    config.optimizer = optimizer = ConfigDict()
    optimizer.learning_rate = config_dict.placeholder(float)
    optimizer.schedule = "cosine"  # constant | cosine | poly
    optimizer.poly_power = 0.9
    optimizer.end_learning_rate = 0.0
    optimizer.warmup_steps = config_dict.placeholder(int)  # at most one of the four; linear from 0
    optimizer.warmup_epochs = config_dict.placeholder(float)
    optimizer.warmup_examples = config_dict.placeholder(int)
    optimizer.warmup_percent = config_dict.placeholder(float)
    optimizer.momentum = 0.9
    optimizer.momentum_rule = "classic"  # classic: rate outside the buffer (PyTorch, optax) | keras: inside
    optimizer.nesterov = False
    optimizer.clip = "none"  # none | per_variable (Keras' clipnorm) | global
    optimizer.clip_norm = config_dict.placeholder(float)
    optimizer.weight_decay = 0.0
    optimizer.weight_decay_rule = "coupled_kernels"  # coupled_kernels: L2 as in the papers | decoupled_all: Keras
    optimizer.learning_rate_multipliers = ConfigDict({"backbone": 1.0, "aspp": 1.0, "decoder": 1.0, "classifier": 1.0})
    optimizer.frozen = ()  # parts of the network that do not learn, e.g. ("backbone",)

    config.loss = loss = ConfigDict()
    loss.name = "softmax_cross_entropy"  # softmax_cross_entropy: mean over labelled pixels | keras: over all pixels
    loss.label_smoothing = 0.0
    loss.class_weights = ()  # one factor per class

    config.eval = evaluation = ConfigDict()
    evaluation.protocol = "whole"
    # whole:   the picture at its own size, padded to eval.image_size; scored at its own size (the papers)
    # squeeze: the picture resized to data.image_size, logits resized back; scored at its own size
    # guide:   picture and ground truth resized to data.image_size and scored there (the KerasCV guide)
    evaluation.image_size = config_dict.placeholder(tuple)  # of `whole`; default: what holds the largest picture
    evaluation.batch_size = config_dict.placeholder(int)  # default: data.batch_size
    evaluation.void = "ignore"  # ignore | background (as Keras' MeanIoU on one-hot labels)
    evaluation.every_steps = config_dict.placeholder(int)  # while training; default: at the end only
    evaluation.every_epochs = config_dict.placeholder(float)
    evaluation.every_examples = config_dict.placeholder(int)
    evaluation.every_percent = config_dict.placeholder(float)

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = config_dict.placeholder(int)  # default: at the end only
    checkpoint.every_epochs = config_dict.placeholder(float)
    checkpoint.every_examples = config_dict.placeholder(int)
    checkpoint.every_percent = config_dict.placeholder(float)
    checkpoint.keep = 2

    config.mesh = ConfigDict({"data": -1})  # devices along the batch; -1 is all of them

    config.log = log = ConfigDict()
    log.every_steps = 10
    log.tensorboard = True
    log.gallery_images = 8  # validation masks drawn at every evaluation
    return config
