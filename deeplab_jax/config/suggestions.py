"""Suggestions for config fields that do not exist."""

import difflib

from deeplab_jax.config.migration import REPLACED
from deeplab_jax.config.schema import FIELDS, iterate_fields

# Names that people know from other projects.
_SYNONYMS = {
    "optimizer.learning_rate": ("lr", "base_lr", "max_lr", "init_lr", "peak_lr"),
    "optimizer.weight_decay": ("wd", "decay", "l2", "l2_regularization"),
    "optimizer.schedule": ("scheduler", "lr_schedule", "lr_scheduler", "policy"),
    "optimizer.warmup": ("warmup_iters", "warmup_steps", "warmup_epochs", "warmup_ratio"),
    "optimizer.clip_norm": ("grad_clip", "clip_grad", "max_grad_norm", "max_norm", "clipnorm"),
    "optimizer.name": ("optim", "opt", "optimizer"),
    "optimizer.frozen": ("freeze", "freeze_backbone", "frozen_stages"),
    "data.batch_size": ("bs", "batch", "batchsize", "samples_per_gpu", "per_device_train_batch_size"),
    "data.image_size": ("size", "img_size", "imgsz", "crop", "crop_size", "input_size", "resolution", "train_size"),
    "data.workers": ("num_workers", "workers_per_gpu", "dataloader_num_workers"),
    "data.name": ("dataset", "data_set", "dataset_name"),
    "data.data_dir": ("root", "data_root", "dataset_dir", "data_path", "datadir"),
    "data.random_flip": ("flip", "hflip", "horizontal_flip"),
    "data.random_rotation": ("rotation", "rotate", "random_rotate", "degrees"),
    "data.random_blur": ("blur", "gaussian_blur"),
    "data.color_jitter": ("jitter",),
    "data.photometric_distortion": ("photometric", "brightness", "contrast", "saturation", "hue"),
    "data.short_side": ("short_edge", "short_edge_length", "shortest_edge", "min_size", "min_resize_value"),
    "data.max_long_side": ("long_side", "max_size", "max_resize_value"),
    "data.copy_paste_classes": ("copy_paste", "classmix", "cutmix"),
    "data.transform": ("transforms", "augmentation", "augmentations", "albumentations"),
    "train.duration": (
        "epochs", "num_epochs", "max_epochs", "num_train_epochs", "steps", "num_steps", "max_steps", "total_steps",
        "iters", "max_iters", "iterations", "total_iters",
    ),
    "train.accumulate_steps": ("grad_accum", "accumulation_steps", "gradient_accumulation_steps", "accumulate_grad"),
    "train.compute_dtype": ("dtype", "precision", "amp", "fp16", "bf16", "mixed_precision"),
    "train.init_from": ("pretrained", "weights", "load_from", "resume", "resume_from", "checkpoint_path", "init"),
    "train.ema_decay": ("ema",),
    "train.seed": ("random_seed",),
    "train.remat": ("gradient_checkpointing", "checkpointing", "with_cp"),
    "model.backbone": ("arch", "architecture", "encoder", "encoder_name", "network"),
    "model.output_stride": ("os", "stride"),
    "model.aspp_dropout": ("dropout", "dropout_ratio", "drop_rate"),
    "model.input_mean": ("mean", "pixel_mean"),
    "model.input_std": ("std", "pixel_std"),
    "loss.terms": ("loss", "losses", "criterion", "loss_fn", "loss_name"),
    "loss.class_weights": ("class_weight",),
    "loss.teacher": ("distill", "distill_from"),
    "eval.every": ("eval_every", "val_every", "val_interval", "eval_steps", "check_val_every_n_epoch"),
    "checkpoint.every": ("save_every", "save_steps", "save_interval", "checkpoint_interval"),
    "checkpoint.keep": ("save_total_limit", "max_keep", "max_to_keep", "max_keep_ckpts"),
    "log.every_steps": ("log_every", "log_interval", "logging_steps", "log_every_n_steps"),
}  # fmt: skip
_FIELD_OF = {synonym: field for field, synonyms in _SYNONYMS.items() for synonym in synonyms}
_CLASSES = ("num_classes", "classes", "n_classes", "nc", "num_labels")


def suggest_field(path: str) -> str:
    """Ends an error message about a config field that does not exist.

    Args:
      path: the field that was not found, with or without its group.

    Returns:
      `; did you mean X?` with the field that is probably meant, or `; choose from A, B, C` if none is close.
    """
    if path in REPLACED:
        return f"; write {REPLACED[path]}"
    group, _, name = path.rpartition(".")
    if name in _CLASSES:
        return "; the classes are those of the data set"
    if field := find_field(path):
        return f"; did you mean {field}?"
    known = [field for field, _ in iterate_fields() if field.startswith(f"{group}.")] or list(FIELDS)
    return f"; choose from {', '.join(known)}"


def find_field(path: str) -> str | None:
    """Returns the field that a name, with or without its group, probably means; None if none is close."""
    group, _, name = path.lower().replace("-", "_").rpartition(".")
    if name in _FIELD_OF:
        return _FIELD_OF[name]
    fields = [field for field, _ in iterate_fields()]
    if parents := [field for field in fields if path.startswith(f"{field}.")]:
        return parents[0]
    own = {field.rpartition(".")[2]: field for field in fields if field.startswith(f"{group}.")}
    if close := difflib.get_close_matches(name, own, n=1, cutoff=0.6):
        return own[close[0]]
    names = {field.rpartition(".")[2] for field in fields}
    close = difflib.get_close_matches(name, [*names, *_FIELD_OF], n=1, cutoff=0.7)
    if not close:
        return None
    if close[0] not in names:
        return _FIELD_OF[close[0]]
    candidates = {field.rpartition(".")[0]: field for field in fields if field.rpartition(".")[2] == close[0]}
    groups = [group] if group in FIELDS else difflib.get_close_matches(group, candidates, n=1)
    return candidates.get(groups[0] if groups else "", next(iter(candidates.values())))
