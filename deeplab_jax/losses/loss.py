"""The training loss: a weighted sum of terms, each of them a mean of its own."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer
from ml_collections import ConfigDict

from deeplab_jax.config import check_fields, parse_loss_terms
from deeplab_jax.errors import UserError
from deeplab_jax.losses import counts
from deeplab_jax.losses.boundary import boundary_cross_entropy, count_near_boundary
from deeplab_jax.losses.cross_entropy import keras_categorical_cross_entropy, softmax_cross_entropy, softmax_focal
from deeplab_jax.losses.hard_pixels import count_top_k, ohem_cross_entropy, top_k_cross_entropy
from deeplab_jax.losses.lovasz import lovasz_softmax
from deeplab_jax.losses.regions import dice, jaccard, tversky
from deeplab_jax.losses.sigmoid import binary_cross_entropy, focal

#: The function of each term of `loss.terms`, and the function of labels that returns the same count.
LOSSES: Mapping[str, tuple[Callable, Callable]] = {
    "cross_entropy": (softmax_cross_entropy, counts.count_pixels),
    "keras_cross_entropy": (keras_categorical_cross_entropy, counts.count_existing_pixels),
    "top_k_cross_entropy": (top_k_cross_entropy, count_top_k),
    "ohem_cross_entropy": (ohem_cross_entropy, counts.count_images),
    "boundary_cross_entropy": (boundary_cross_entropy, count_near_boundary),
    "binary_cross_entropy": (binary_cross_entropy, counts.count_pixels),
    "focal": (focal, counts.count_pixels),
    "softmax_focal": (softmax_focal, counts.count_pixels),
    "dice": (dice, counts.count_images),
    "jaccard": (jaccard, counts.count_images),
    "tversky": (tversky, counts.count_images),
    "lovasz": (lovasz_softmax, counts.count_images),
}

# Counts of the whole batch by term.
Counts = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a loss.

    Attributes:
      weight: factor on its mean.
      function: takes logits, labels and options; returns the sum and the count that divides it.
      count: takes labels and options; returns the same count.
      options: keyword arguments. Each function gets those that it has parameters for.
    """

    weight: float
    function: Callable
    count: Callable
    options: Mapping[str, Any]

    def sum_and_count(self, logits, labels, **inputs) -> tuple[Float[Array, ""], Array]:
        """Returns the weighted sum, and the count."""
        total, count = self.function(logits, labels, **_accepted(self.function, self.options | inputs))
        return (total if self.weight == 1 else self.weight * total), count

    def count_only(self, labels, **inputs) -> Array:
        """Returns the count, which does not depend on logits."""
        return self.count(labels, **_accepted(self.count, self.options | inputs))


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of `config.loss`. A call returns a sum and a count, which add up over micro-batches.

    A loss of one term returns the term's sum and count. With several terms, each divides by a count of its own: pixels,
    pixels near boundaries, images. Counts depend on labels alone, so those of the whole batch are known before the
    first micro-batch is computed, and the sums of the parts can be added. The call then returns the loss times the
    number of images in the whole batch, and the number of images it was called with.

    Attributes:
      terms: the terms by name.
    """

    terms: Mapping[str, Term]

    def __call__(
        self,
        logits: Float[Array, "batch height width classes"],
        labels: Integer[Array, "batch height width"],
        *,
        where: Bool[Array, "batch height width"] | None = None,
        teacher_logits: Float[Array, "batch height width classes"] | None = None,
        step: Integer[Array, ""] | int | None = None,
        whole: Counts | None = None,
    ) -> tuple[Float[Array, ""], Array]:
        """Computes the loss of a batch, or of a part of one.

        Args:
          logits: outputs of the network at the size of the labels.
          labels: class ids, or `IGNORE_LABEL`.
          where: pixels that exist; others contribute nothing.
          teacher_logits: see `softmax_cross_entropy`.
          step: number of steps taken before this one, for terms that change; None is after the last.
          whole: `counts` of the whole batch; default: this is the whole batch.

        Returns:
          The sum, and the count to divide it by.
        """
        report = self.report(logits, labels, where=where, teacher_logits=teacher_logits, step=step, whole=whole)
        return report["loss_sum"], report["loss_count"]

    def report(self, logits, labels, *, where=None, teacher_logits=None, step=None, whole=None) -> dict[str, Any]:
        """Returns the result of a call as `loss_sum` and `loss_count`, and what it consists of.

        With several terms, `loss_terms` has the weighted sum and the count of each. They add up over batches: the loss
        of many batches is the sum over terms of their total sum / their total count.
        """
        inputs = {"where": where, "step": step}
        if teacher_logits is not None:
            inputs["teacher_logits"] = teacher_logits
        terms = {name: term.sum_and_count(logits, labels, **inputs) for name, term in self.terms.items()}
        if len(terms) == 1:
            ((loss_sum, loss_count),) = terms.values()
            return {"loss_sum": loss_sum, "loss_count": loss_count}
        if whole is None:
            whole = {name: count for name, (_, count) in terms.items()} | {"images": jnp.int32(len(labels))}
        loss_sum = sum(_mean(total, whole[name]) for name, (total, _) in terms.items())
        return {
            "loss_sum": loss_sum * whole["images"].astype(loss_sum.dtype),
            "loss_count": jnp.int32(len(labels)),
            "loss_terms": terms,
        }

    def count(self, labels: Integer[Array, "batch height width"], *, step=None) -> Array:
        """Returns the count of a call with these labels, which does not depend on logits."""
        if len(self.terms) > 1:
            return jnp.int32(len(labels))
        (term,) = self.terms.values()
        return term.count_only(labels, step=step)

    def counts(self, labels: Integer[Array, "batch height width"], *, step=None) -> Counts | None:
        """Returns the counts of a whole batch, for calls with its parts. None if there is one term."""
        if len(self.terms) == 1:
            return None
        counted = {name: term.count_only(labels, step=step) for name, term in self.terms.items()}
        return counted | {"images": jnp.int32(len(labels))}


def as_loss(loss: Loss | Callable) -> Loss:
    """Returns a loss, or makes one of a function of your own.

    Args:
      loss: a loss, or a function of logits and labels that returns a sum and a count. It gets the inputs `where`,
        `teacher_logits` and `step` of `Loss` that it has parameters for.
    """
    if isinstance(loss, Loss):
        return loss
    return Loss({"loss": Term(1.0, loss, counts.count_pixels, {})})


def add_auxiliary(report: dict[str, Any], auxiliary: dict[str, Any], weight: float) -> dict[str, Any]:
    """Adds a weighted `Loss.report` of an auxiliary head to that of the main head. Their counts are the same."""
    added = report | {"loss_sum": report["loss_sum"] + weight * auxiliary["loss_sum"]}
    if "loss_terms" in report:
        added["loss_terms"] = {
            name: (total + weight * auxiliary["loss_terms"][name][0], count)
            for name, (total, count) in report["loss_terms"].items()
        }
    return added


def make_loss(loss: ConfigDict, *, num_classes: int) -> Loss:
    """Builds the loss of `config.loss`.

    Args:
      loss: the `loss` group of a config.
      num_classes: number of classes of the data set.

    Raises:
      UserError: a term that does not exist, an option that is not legal, or class weights that do not fit the classes.
    """
    check_fields("loss", loss)
    weights = tuple(loss.class_weights)
    if weights and len(weights) != num_classes:
        raise UserError(f"loss.class_weights has {len(weights)} values for {num_classes} classes")
    if loss.class_weight_rule != "given":
        raise UserError(
            f"loss.class_weight_rule={loss.class_weight_rule!r} counts the labels of a training; set it to 'given' here"
        )
    shared = {
        "class_weights": weights,
        "label_smoothing": loss.label_smoothing,
        "teacher_weight": loss.teacher_weight,
    }
    terms = {}
    for term in parse_loss_terms(loss.terms):
        function, count = LOSSES[term.name]
        repeats = sum(other.function is function for other in terms.values())
        name = f"{term.name}_{repeats + 1}" if repeats else term.name
        terms[name] = Term(term.weight, function, count, shared | dict(term.options))
    return Loss(terms)


def _accepted(function: Callable, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def _mean(total: Float[Array, ""], count: Array) -> Float[Array, ""]:
    count = count.astype(total.dtype)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
