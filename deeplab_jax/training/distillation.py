"""A trained network whose predictions on each training batch a smaller one learns from."""

from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict
from rich.console import Console

from deeplab_jax import pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.inference import multi_scale
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import build_for_mesh
from deeplab_jax.parallel import sharding


class Teacher:
    """The network of `loss.teacher`: sees each image as the learning one does, cut and mirrored alike.

    That teacher and student see the same view is what makes long schedules pay (arXiv 2106.05237, section 3.1). A
    teacher that was trained on larger images than the student is may see the view enlarged, at `loss.teacher_scales`,
    and mirrored as well, with `loss.teacher_flip`: its logits are then of the mean probabilities, at the view's size.
    """

    def __init__(self, config: ConfigDict, label_set: LabelSet, mesh: Mesh, *, console: Console | None = None):
        """Loads the network.

        Args:
          config: a whole config whose `loss.teacher` is set.
          labels: of the data set, which have to be the teacher's.
          mesh: over which batches are split; the teacher is on every device.
          console: shows the progress of a download.

        Raises:
          UserError: no such network, a backbone without classes, or other classes.
        """
        name = config.loss.teacher
        network = pretrained.load(name, console=console)
        if network.label_set is None:
            raise UserError(f"loss.teacher={name} is a backbone without classes; give a network that segments")
        if network.label_set.class_names != label_set.class_names:
            raise UserError(f"loss.teacher={name} knows other classes than {config.data.name}")
        config = config.copy_and_resolve_references()
        config.model = network.model
        model = build_for_mesh(config, label_set.num_classes, mesh)
        self._variables = jax.device_put(network.variables, sharding.replicated(mesh))
        scales, flip = tuple(config.loss.teacher_scales), config.loss.teacher_flip

        def predict(variables, images):
            views = multi_scale.network_views(model, variables, images, scales=scales, flip=flip)
            logits = [model.ops.resize_bilinear(view.logits, images.shape[1:3]) for view in views]
            return multi_scale.mean_prediction(logits)

        self._apply = jax.jit(predict)

    def __call__(self, arrays: dict[str, Array]) -> dict[str, Any]:
        """A batch with `teacher_logits` (batch, height, width, classes) beside its `image` and `label`."""
        return arrays | {"teacher_logits": self._apply(self._variables, arrays["image"])}
