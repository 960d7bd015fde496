"""Knowledge distillation: a trained teacher whose predictions on each training batch the network learns from."""

from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.inference import multi_scale
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import build_for_mesh
from deeplab_jax.parallel import sharding


class Teacher:
    """The network of `loss.teacher`. It sees each image as the student does, with the same crop and flip.

    Seeing the same view is what makes long schedules pay off (arXiv 2106.05237, section 3.1). A teacher that was
    trained on larger images than the student can see the view enlarged (`loss.teacher_scales`) and also mirrored
    (`loss.teacher_flip`). Its logits are then those of the mean probabilities, at the size of the view.
    """

    def __init__(self, config: ConfigDict, label_set: LabelSet, mesh: Mesh):
        """Loads the network.

        Args:
          config: a whole config with `loss.teacher` set.
          label_set: the classes of the data set, which must be the teacher's.
          mesh: the mesh that batches are split over; every device holds the teacher.

        Raises:
          UserError: there is no such network, it is a backbone without classes, or its classes differ.
        """
        name = config.loss.teacher
        network = pretrained.load(name)
        if network.label_set is None:
            raise UserError(f"loss.teacher={name} is a backbone without classes; choose a segmentation network")
        differences = _first_difference(network.label_set.class_names, label_set.class_names)
        if differences is not None:
            raise UserError(
                f"loss.teacher={name} was trained on different classes than data set {config.data.name} ({differences})"
            )
        if network.model.in_channels != config.model.in_channels:
            raise UserError(
                f"loss.teacher={name} takes images of {network.model.in_channels} channels, but those of data set "
                f"{config.data.name} have {config.model.in_channels}"
            )
        value_range = tuple(config.model.value_range)
        config = config.copy_and_resolve_references()
        config.model = network.model.copy_and_resolve_references()
        config.model.value_range = value_range  # that of the data: the teacher sees the same images
        model = build_for_mesh(config, label_set.num_classes, mesh)
        self._variables = jax.device_put(network.variables, sharding.replicated(mesh))
        scales, flip = tuple(config.loss.teacher_scales), config.loss.teacher_flip

        def predict(variables, images):
            views = multi_scale.network_views(model, variables, images, scales=scales, flip=flip)
            logits = [model.ops.resize_bilinear(view.logits, images.shape[1:3]) for view in views]
            return multi_scale.mean_prediction(logits)

        self._apply = jax.jit(predict)

    def __call__(self, arrays: dict[str, Array]) -> dict[str, Any]:
        """Adds `teacher_logits` (batch, height, width, classes) to a batch of `image` and `label`."""
        return arrays | {"teacher_logits": self._apply(self._variables, arrays["image"])}


def _first_difference(teacher: tuple[str, ...], student: tuple[str, ...]) -> str | None:
    """Describes the first class in which two networks differ."""
    if len(teacher) != len(student):
        return f"{len(teacher)} classes instead of {len(student)}"
    pairs = enumerate(zip(teacher, student, strict=True))
    return next((f"class {i} is {a!r} instead of {b!r}" for i, (a, b) in pairs if a != b), None)
