"""The compiled step that a config trains with on a mesh, and the shapes of the state it turns."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deeplab_jax import losses
from deeplab_jax.models import PARTS, DeepLabV3Plus, build_for_mesh
from deeplab_jax.parallel import sharding
from deeplab_jax.training import ema, nonfinite, optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import make_train_step

# For XLA:CPU, which then looks closer at which arrays are in use together, and copies less. Of 1,985 MiB of temporaries
# of ResNet-50's step (512x512, batch 4) 34 go. Other platforms do not know the option.
_CPU_OPTIONS = {"xla_cpu_copy_insertion_use_region_analysis": True}


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """What `train` runs and `aot` measures.

    Attributes:
      model: the network, with the operations that the mesh needs.
      update_rule: of the parameters.
      learning_rate: the schedule, of the step.
      shapes: of the state, each leaf with its sharding.
      batch_shapes: of a batch, likewise.
      step: jitted, `step(state, batch)` of `deeplab_jax.training.step.make_train_step`; the state is donated.
    """

    model: DeepLabV3Plus
    update_rule: optax.GradientTransformation
    learning_rate: Callable
    shapes: TrainState
    batch_shapes: dict[str, jax.ShapeDtypeStruct]
    step: jax.stages.Wrapped

    @property
    def shardings(self) -> TrainState:
        """Where each leaf of the state lives."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def random_state(self, *, seed: int) -> TrainState:
        """The state before the first step; compiles the step too, which its first call would wait for."""
        lowered_state = TrainState.lower_create(
            self.shardings,
            self.model,
            self.update_rule,
            seed=seed,
            averages=self.shapes.ema_variables is not None,
            image_size=self.batch_shapes["image"].shape[1:3] if self.model.zero_unreached_taps else None,
        )
        # The state is made while the step is traced: two traces side by side would wait for each other, two
        # compilations side by side take the memory of both.
        with ThreadPoolExecutor(1) as other_thread:
            state = other_thread.submit(lambda: lowered_state.compile()())
            lowered_step = self.step.lower(self.shapes, self.batch_shapes)
        lowered_step.compile()
        return state.result()


def build(config: ConfigDict, num_classes: int, mesh: Mesh, *, total_steps: int, warmup_steps: int) -> TrainProgram:
    """The program of a config that `deeplab_jax.config.validate` has passed. Computes nothing.

    Args:
      config: a whole config.
      num_classes: of the data set.
      mesh: of `mesh_lib.make_mesh`; its devices need not be there.
      total_steps: of the training.
      warmup_steps: of the learning rate.

    Raises:
      UserError: a value that the network, the loss or the update rule cannot be built with.
    """
    model = build_for_mesh(config, num_classes, mesh)
    loss_fn = losses.make_loss(config.loss, num_classes=num_classes)
    learning_rate = optimizer.make_schedule(config.optimizer, total_steps, warmup_steps)
    update_rule = optimizer.make_optimizer(config.optimizer, total_steps, warmup_steps, parts=PARTS)
    averages = config.train.ema_decay is not None
    shapes = TrainState.shapes(model, update_rule, averages=averages)
    shapes = sharding.with_shardings(shapes, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    step = make_train_step(
        model,
        update_rule,
        loss_fn,
        learning_rate=learning_rate,
        void=config.eval.ignored_pixels,
        accumulate=config.train.accumulate_steps,
        shardings=shardings,
        frozen=tuple(config.optimizer.frozen),
    )
    if averages:
        step = ema.averaging(step, config.train.ema_decay)
    if config.train.nonfinite == "skip":
        step = nonfinite.passing_over(step)
    step = jax.jit(
        step,
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=_CPU_OPTIONS if mesh.devices.flat[0].platform == "cpu" else None,
    )
    size = (config.data.batch_size, *config.data.image_size)
    batch = {"image": ((*size, config.model.in_channels), np.uint8), "label": (size, np.uint8)}
    if config.loss.teacher is not None:
        batch["teacher_logits"] = ((*size, num_classes), np.float32)
    return TrainProgram(model, update_rule, learning_rate, shapes, sharding.abstract_batch(batch, mesh), step)
