"""Class weights of the loss, counted from the labels of the training split."""

import logging

from ml_collections import ConfigDict

from deeplab_jax.data.sampling import count_pixels
from deeplab_jax.losses import CLASS_WEIGHT_RULES

logger = logging.getLogger(__name__)


def with_class_weights(config: ConfigDict, source) -> ConfigDict:
    """Replaces `loss.class_weight_rule` with the weights that it gives for a training split.

    Every process of a run counts all labels, and gets the same weights.

    Args:
      config: a valid config.
      source: the split to train on, see `deeplab_jax.data.open_source`.

    Returns:
      The config itself if its weights are given, or a copy with `loss.class_weights` of four digits.

    Raises:
      UserError: an example cannot be read, see `count_pixels`.
    """
    rule = config.loss.class_weight_rule
    if rule == "given":
        return config
    pixels = count_pixels(source, unreadable=config.data.unreadable)
    weights = tuple(float(f"{weight:.4g}") for weight in CLASS_WEIGHT_RULES[rule](pixels))
    config = config.copy_and_resolve_references()
    config.loss.update(class_weights=weights, class_weight_rule="given")
    pairs = zip(source.label_set.class_names, weights, strict=True)
    logger.info("Class weights by %s: %s", rule, ", ".join(f"{name} {weight:g}" for name, weight in pairs))
    return config
