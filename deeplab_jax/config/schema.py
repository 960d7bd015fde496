"""Experiment configs: the schema, typed arguments, durations, and validation before any device work.

A config file in `configs/` defines `get_config(arg=None)`, starts from `base_config()` and sets values. Fields that
the schema leaves empty are placeholders: typed, None until set, and settable from the command line.
"""

from ml_collections import ConfigDict, config_dict

#: Values of `eval.protocol`, see `base_config`.
PROTOCOLS = ("whole", "squeeze", "guide")


def base_config() -> ConfigDict:
    """Every field there is, with the value that switches the feature off or leaves it to the experiment."""
    config = ConfigDict()

    config.model = model = ConfigDict()
    model.backbone = config_dict.placeholder(str)  # a name of deeplab_jax.models.BACKBONES
    model.width_multiplier = 1.0  # of mobilenet_v2
    model.in_channels = 3  # channels of images
    model.output_stride = 16  # 8, 16 or 32, by atrous conversion with the same parameters
    model.multi_grid = ()  # rate multipliers of the last stage's units; () is all ones
    model.spread_converted_units = False  # units whose stride is traded run at the rate behind them, as in smp
    model.atrous_rates = (6, 12, 18)  # of the 3x3 branches of ASPP
    model.atrous_rates_stride = 16  # the output stride `atrous_rates` are stated for; they scale with the real one
    model.aspp_channels = 256  # of each branch of ASPP and of its result
    model.aspp_separable = False  # 3x3 branches are depthwise separable
    model.separable_norm = True  # BatchNorm and ReLU between the two convolutions of a separable one
    model.image_pooling = True  # a branch of ASPP for the whole image's mean
    model.aspp_dropout = 0.0  # share of ASPP's results that training drops
    model.decoder = "paper"  # paper | separable | kerascv | torchvision | smp | none (DeepLabv3)
    model.decoder_channels = 256  # of the decoder's convolutions
    model.low_level_channels = 48  # to which the decoder projects the features of stride 4
    model.decoder_dropout = 0.0  # share of the decoder's results that training drops
    model.classifier_bias = True  # the last convolution has a bias
    model.kernel_init = "he_normal"  # he_normal | glorot_uniform (Keras)
    model.backbone_norm_epsilon = 1e-5  # of BatchNorm, added to the variance
    model.backbone_norm_decay = 0.9  # of its running statistics: decay * running + (1 - decay) * batch
    model.head_norm_epsilon = 1e-5  # the same for ASPP and decoder
    model.head_norm_decay = 0.9  # the same for ASPP and decoder
    model.freeze_norm_statistics = False  # BatchNorm uses its running statistics while training too
    model.padding = "symmetric"  # symmetric (PyTorch, the papers) | same_upper (TensorFlow)
    model.align_corners = False  # half-pixel bilinear resizing unless True
    model.input_mean = (123.675, 116.28, 103.53)  # RGB of range 0-255
    model.input_std = (58.395, 57.12, 57.375)  # inputs are (images - mean) / std

    config.data = data = ConfigDict()
    data.name = config_dict.placeholder(str)  # see deeplab_jax.data.dataset_names
    data.data_dir = config_dict.placeholder(str)  # default: $DEEPLAB_JAX_DATA or ~/deeplab_jax_data
    data.train_split = "train"  # the split to train on; several of a prepared data set as "train+val"
    data.eval_split = "val"  # the split to score on
    data.batch_size = config_dict.placeholder(int)  # global, over all devices and processes
    data.image_size = config_dict.placeholder(tuple)  # (height, width) that the network trains on
    data.resize = "squeeze"
    # squeeze:      plain resize to image_size
    # scale_crop:   scaled by a random factor, padded, a random window cut (the papers)
    # resized_crop: a random box cut and resized to image_size
    data.antialias = False  # of squeezed images: bilinear resizing averages what it shrinks, as Pillow does
    data.scale_range = (0.5, 2.0)  # of scale_crop; of resized_crop the box's share of each side, at most 1
    data.scale_step = 0.25  # of scale_crop; 0 draws from the whole range
    data.random_flip = "horizontal"  # none | horizontal | horizontal_and_vertical
    data.color_jitter = 0.0  # j: brightness, contrast and saturation each by a random factor of 1 - j to 1 + j
    data.paste_classes = ()  # pixels of these classes of another example, augmented like the first, are laid over it
    data.paste_share = 0.5  # of examples, for which another is drawn to paste from
    data.repeat_threshold = 0.0  # images of classes in a smaller share of images come more often; 0: all alike
    data.workers = 0  # processes that read and transform; 0 uses threads of this one
    data.unreadable = "raise"  # an example that cannot be read: raise | skip: the next one takes its place, counted
    data.num_examples = config_dict.placeholder(int)  # per split, of generated data sets only

    config.train = train = ConfigDict()
    train.steps = config_dict.placeholder(int)  # one of steps, epochs, examples
    train.epochs = config_dict.placeholder(float)  # each example that often; steps = epochs * examples / batch, rounded
    train.examples = config_dict.placeholder(int)  # so many examples, each counted as often as it is shown
    train.seed = 0  # of initialization, order, augmentation and dropout
    train.accumulate_steps = 1  # batches are computed in so many parts, one after the other; BatchNorm sees one part
    train.compute_dtype = "float32"  # float32 | bfloat16; parameters, statistics, logits, loss stay float32
    train.remat = "none"  # none | activations | units: what accelerators compute again for the gradient, not keep
    train.ema_decay = config_dict.placeholder(float)  # a step; evaluation and prediction use variables averaged so
    train.nonfinite = "stop"  # a NaN or infinite loss or gradient: stop | skip: the step changes no parameter
    train.init_from = config_dict.placeholder(str)  # a preset, or a folder of one, or a workdir to start from

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "sgd"  # sgd | adam; with weight_decay_rule decoupled_all, adam is AdamW
    optimizer.learning_rate = config_dict.placeholder(float)  # at its peak
    optimizer.schedule = "cosine"  # constant | cosine | poly
    optimizer.poly_power = 0.9  # of poly: the rate falls with (1 - t / steps)^power
    optimizer.end_learning_rate = 0.0  # of cosine and poly
    optimizer.warmup_steps = config_dict.placeholder(int)  # the rate rises linearly from 0; one of the four at most
    optimizer.warmup_epochs = config_dict.placeholder(float)  # the same in epochs
    optimizer.warmup_examples = config_dict.placeholder(int)  # the same in examples
    optimizer.warmup_percent = config_dict.placeholder(float)  # the same in percent of all steps
    optimizer.momentum = 0.9  # of SGD, 0 for none; beta 1 of Adam
    optimizer.adam_beta2 = 0.999  # of Adam's mean of squared gradients
    optimizer.momentum_rule = "classic"  # classic: rate outside the buffer (PyTorch, optax) | keras: inside
    optimizer.nesterov = False  # Nesterov's momentum
    optimizer.clip = "none"  # none | per_variable (Keras' clipnorm) | global
    optimizer.clip_norm = config_dict.placeholder(float)  # largest norm of a gradient, or of all together
    optimizer.weight_decay = 0.0  # factor of the decay of parameters
    optimizer.weight_decay_rule = "coupled_kernels"  # coupled_kernels: L2 as in the papers | decoupled_all: Keras
    optimizer.learning_rate_multipliers = ConfigDict({"backbone": 1.0, "aspp": 1.0, "decoder": 1.0, "classifier": 1.0})
    # factors of the whole update of each part of the network
    optimizer.frozen = ()  # parts, or modules by path, that do not learn: ("aspp", "backbone/stage[1-3]*")

    config.loss = loss = ConfigDict()
    loss.name = "softmax_cross_entropy"  # softmax_cross_entropy: mean over labeled pixels | keras: over all pixels
    loss.label_smoothing = 0.0  # s: the target of the true class is 1 - s + s / classes, of others s / classes
    loss.class_weights = ()  # one factor per class
    loss.teacher = config_dict.placeholder(str)  # a preset, folder or workdir of the same classes to learn from too
    loss.teacher_weight = 0.5  # share of the teacher's probabilities in the target; the labels have the rest
    loss.teacher_scales = (1.0,)  # at which it sees each image; the views' probabilities are averaged
    loss.teacher_flip = False  # it sees every scale mirrored as well

    config.eval = evaluation = ConfigDict()
    evaluation.protocol = "whole"
    # whole:   the image at its own size, padded to eval.image_size; scored at its own size (the papers)
    # squeeze: the image resized to data.image_size, logits resized back; scored at its own size
    # guide:   image and ground truth resized to data.image_size and scored there (the KerasCV guide)
    evaluation.image_size = config_dict.placeholder(tuple)  # of `whole`; default: what holds the largest image
    evaluation.batch_size = config_dict.placeholder(int)  # default: data.batch_size
    evaluation.scales = (1.0,)  # factors at which an image is seen; the views' probabilities are averaged
    evaluation.flip = False  # every scale is seen mirrored as well
    evaluation.void = "ignore"  # ignore | background (as Keras' MeanIoU on one-hot labels)
    evaluation.every_steps = config_dict.placeholder(int)  # while training, one of the four; default: at the end only
    evaluation.every_epochs = config_dict.placeholder(float)  # the same in epochs
    evaluation.every_examples = config_dict.placeholder(int)  # the same in examples
    evaluation.every_percent = config_dict.placeholder(float)  # the same in percent of all steps

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = config_dict.placeholder(int)  # one of the four; default: at the end only
    checkpoint.every_epochs = config_dict.placeholder(float)  # the same in epochs
    checkpoint.every_examples = config_dict.placeholder(int)  # the same in examples
    checkpoint.every_percent = config_dict.placeholder(float)  # the same in percent of all steps
    checkpoint.keep = 2  # the newest ones; the one with the best mean IoU stays besides

    config.distributed = ConfigDict({"heartbeat_seconds": 30})  # silence after which a process counts as dead

    config.mesh = mesh = ConfigDict()  # devices along each axis; -1, for one of them, is the rest
    mesh.data = -1  # the batch is split over data and fsdp
    mesh.fsdp = 1  # parameters, momentum and batch statistics are split over it
    mesh.spatial = 1  # the rows of images are split over it
    mesh.fsdp_min_size = 2**14  # arrays of fewer elements are not split: gathering them takes longer than they save

    config.log = log = ConfigDict()
    log.every_steps = 10  # loss, scores and speed of so many steps on the console and in metrics.jsonl
    log.tensorboard = True  # also as TensorBoard events
    log.gallery_images = 8  # validation masks drawn at every evaluation
    log.profile_steps = 0  # steps traced into the workdir's `profile`, for TensorBoard and Perfetto
    return config.lock()  # a config file that sets a field there is not fails, with the nearest name
