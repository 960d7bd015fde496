"""Compiles a config's train or evaluation step for a TPU slice, with the TPU compiler of `libtpu` and without a TPU."""

import collections
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from deeplab_jax import config as config_lib
from deeplab_jax.analysis.collectives import Collective, find_collectives
from deeplab_jax.analysis.tpu_specs import CHIPS, GIB, Chip
from deeplab_jax.data.protocol import CanvasProtocol, protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.step import jit_eval_step
from deeplab_jax.models import abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training.step import build_program

# Without these, libtpu looks for the TPU of this machine. Any accelerator type works for any topology.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling does not occupy a TPU, so several processes may compile
}
_SHAPES = {
    "v4": "2x2x1, 2x2x2, 2x2x4, 4x4x4",
    "v5e": "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
    "v5p": "2x2x1, 2x2x2, 2x2x4, 4x4x4",
    "v6e": "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
}
# Number of training examples. No data set is opened, and the program does not depend on the length of the schedule.
_EXAMPLES = 10_000
# The compiler's messages about programs that are too large.
_NEEDED = re.compile(r"\((?P<needed>[\d.]+)G\) exceeds available HBM|Used (?P<used>[\d.]+)G of [\d.]+G hbm")


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """The cost of a compiled program on each chip. Sizes are in bytes.

    Attributes:
      batch_size: images per step, over all chips.
      batch_per_chip: images per step on one chip, or on the `mesh.spatial` chips that share the rows of an image.
      mesh: number of devices along each axis.
      arguments: size of the state and the batch.
      outputs: size of the state and the report.
      aliased: size of the outputs that replace arguments.
      temporaries: largest total size of intermediate values.
      generated_code: size of the instructions.
      flops: floating-point operations.
      bytes_accessed: bytes that operations read and write, in memory and on the chip.
      collectives: by kind: `count`, `bytes` that a chip holds afterwards, and `sent_bytes`.
      slices: number of slices.
      between_slices: the same as `collectives` for what slices exchange over the network of the data center.
      compile_seconds: compile time on this machine.
    """

    batch_size: int
    batch_per_chip: int
    mesh: dict[str, int]
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    generated_code: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, dict[str, int]]
    compile_seconds: float
    slices: int = 1
    between_slices: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """The memory that the program needs on each chip."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.generated_code

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that each chip sends to others of its slice."""
        return sum(entry["sent_bytes"] for entry in self.collectives.values())

    @property
    def network_bytes(self) -> int:
        """The number of bytes that each chip's host sends to other slices for it."""
        return sum(entry["sent_bytes"] for entry in self.between_slices.values())


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that the compiler rejected. It needs `needed` bytes of a chip's memory, not counting arguments."""

    batch_size: int
    batch_per_chip: int
    needed: int


def get_chip(topology: str) -> Chip:
    """The chip of a topology such as `v5e:4x4`.

    Raises:
      UserError: the chip is unknown, or the shape is missing.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = "; ".join(f"{name}: {shapes}" for name, shapes in _SHAPES.items())
        raise UserError(f"unknown topology {topology!r}; write CHIP:SHAPE, for example v5e:4x4 ({known})")
    return CHIPS[generation]


def topology_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of TPU slices, one per chip. Programs can be compiled for them, but not run.

    Args:
      topology: the shape of each slice, such as `v5e:4x4`.
      slices: number of slices, which the network of the data center connects.

    Raises:
      UserError: `libtpu` is not installed, or the slice does not exist.
    """
    chip = get_chip(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; install the extra: pip install 'deeplab_jax[tpu]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(
            topology, platform="tpu", num_slices=slices, **dict(chip.topology_options)
        )
    except jax.errors.JaxRuntimeError as error:
        shapes = _SHAPES[topology.partition(":")[0]]
        message = " ".join(str(error).split())
        raise UserError(f"topology {topology!r} does not exist ({message}); choose from {shapes}") from error
    return described.devices


def libtpu_version() -> str:
    """The version of the TPU compiler."""
    return importlib.metadata.version("libtpu")


def lower_step(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    *,
    num_classes: int,
    inference: bool = False,
) -> jax.stages.Lowered:
    """Lowers the train step of a config, or its evaluation step, for devices that need not exist on this machine.

    Args:
      config: a whole config. No data set is opened.
      devices: see `topology_devices`.
      num_classes: number of classes of the data set.
      inference: lower the evaluation step instead of the train step.

    Raises:
      UserError: the config cannot run on these devices.
    """
    processes = len({device.process_index for device in devices})
    config_lib.validate(config, training=not inference)
    protocol = protocol_for(config)
    mesh_lib.validate_mesh(
        config,
        devices=len(devices),
        processes=processes,
        input_sizes=protocol.input_sizes,
        can_split_rows=protocol.can_split_rows,
        slices=mesh_lib.count_slices(devices),
    )
    mesh = mesh_lib.make_mesh(config.mesh, devices)
    step, arguments = (_eval_step if inference else _train_step)(config, num_classes, mesh)
    return step.lower(*arguments)


def compile_program(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    *,
    num_classes: int,
    batch_per_chip: int | None = None,
    inference: bool = False,
) -> CompiledProgram | TooLarge:
    """Compiles the step that `lower_step` lowers.

    Args:
      config: see `lower_step`.
      devices: see `lower_step`.
      num_classes: see `lower_step`.
      batch_per_chip: images per chip, or per group of chips that share rows; default: the batch size of the config.
      inference: see `lower_step`.

    Raises:
      UserError: see `lower_step`.
    """
    sizes = mesh_lib.mesh_sizes(config.mesh, len(devices))
    shards = sizes["data"] * sizes["fsdp"]
    if batch_per_chip is not None:
        config = config.copy_and_resolve_references()
        config.data.batch_size = config.eval.batch_size = batch_per_chip * shards
    lowered = lower_step(config, devices, num_classes=num_classes, inference=inference)
    batch_size = config_lib.eval_batch_size(config) if inference else config.data.batch_size
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = parse_needed_bytes(str(error))
        if needed is None:
            raise
        return TooLarge(batch_size, batch_size // shards, needed)
    seconds = time.monotonic() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    exchanges = find_collectives(compiled.as_text())
    return CompiledProgram(
        batch_size=batch_size,
        batch_per_chip=batch_size // shards,
        mesh=sizes,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        generated_code=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        collectives=sum_by_kind([each for each in exchanges if not each.between_slices]),
        compile_seconds=seconds,
        slices=mesh_lib.mesh_slices(config.mesh, len(devices), found=mesh_lib.count_slices(devices)),
        between_slices=sum_by_kind([each for each in exchanges if each.between_slices]),
    )


def parse_needed_bytes(message: str) -> int | None:
    """The memory that a program needs, from the compiler's message that it is too large; None for other messages."""
    found = _NEEDED.search(message)
    return None if found is None else round(float(found["needed"] or found["used"]) * GIB)


def sum_by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Sums collectives by kind, see `CompiledProgram.collectives`."""
    sums = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "sent_bytes": 0})
    for collective in collectives:
        entry = sums[collective.kind]
        entry["count"] += 1
        entry["bytes"] += collective.num_bytes
        entry["sent_bytes"] += collective.sent_bytes
    return dict(sums)


def _train_step(config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
    sizes = {"batch_size": config.data.batch_size, "num_examples": _EXAMPLES}
    total = config_lib.duration_steps(config.train.duration, field="train.duration", **sizes) or 1
    warmup = config_lib.duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total, **sizes)
    program = build_program(config, num_classes, mesh, total_steps=total, warmup_steps=warmup or 0)
    return program.take_step.jitted, (program.shapes, program.batch_shapes, program.hyperparams)


def _eval_step(config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
    protocol = protocol_for(config)
    if not isinstance(protocol, CanvasProtocol):
        raise UserError(
            f"eval.protocol={config.eval.protocol} has no single program: its inputs depend on the images; compile "
            "another protocol, or the training step"
        )
    model = build_for_mesh(config, num_classes, mesh, input_sizes=protocol.input_sizes)
    variables = abstract_variables(model)
    variables = sharding.with_shardings(variables, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    count = config_lib.eval_batch_size(config)
    if protocol.eval_size is None:  # the largest image of the data set is unknown
        protocol = dataclasses.replace(protocol, eval_size=protocol.train_size)
    image, label = protocol.batch_sizes(lambda: protocol.eval_size)
    batch = {
        "image": ((count, *image, config.model.in_channels), np.uint8),
        "label": ((count, *label), np.uint8),
        "size": ((count, 2), np.int32),
        "valid": ((count,), np.bool_),
    }
    return jit_eval_step(config, model, mesh), (variables, sharding.abstract_batch(batch, mesh))
