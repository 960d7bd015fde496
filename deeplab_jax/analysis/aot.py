"""What a config needs on a TPU slice that is not here: its programs, compiled here by the TPU's own compiler.

The compiler is in `libtpu` (extra `tpu`) and describes slices without a TPU. What it makes of a program is known before
it runs: memory, operations, what chips send each other. How long it runs is not; `deeplab_jax.analysis.tpu_specs` bounds it.
"""

import collections
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from deeplab_jax import config as config_lib
from deeplab_jax.analysis import collectives
from deeplab_jax.analysis.tpu_specs import CHIPS, GIB, Chip, roofline
from deeplab_jax.data.protocol import protocol_for
from deeplab_jax.errors import UserError
from deeplab_jax.evaluation.step import jit_eval_step
from deeplab_jax.models import abstract_variables, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training.step import build_program

# Without them libtpu asks for the machine's TPU, which is not there; any accelerator type will do for any topology.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling needs no TPU of its own, so others may compile too
}
_SHAPES = {
    "v4": "2x2x1, 2x2x2, 2x2x4, 4x4x4",
    "v5e": "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
    "v5p": "2x2x1, 2x2x2, 2x2x4, 4x4x4",
    "v6e": "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16",
}
_EXAMPLES = 10_000  # of a split that is not opened: they set how long a schedule is, which is a constant in the program
# What the compiler says of a program that is too large.
_NEEDED = re.compile(r"\((?P<needed>[\d.]+)G\) exceeds available HBM|Used (?P<used>[\d.]+)G of [\d.]+G hbm")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, per chip. Sizes are bytes.

    Attributes:
      batch_size: images a step, of all chips.
      batch_per_chip: images a step of one chip, or of the `mesh.spatial` chips that share their rows.
      mesh: devices along each axis.
      arguments: the state and the batch.
      outputs: the state and the report.
      aliased: of the outputs, what takes the place of arguments.
      temporaries: the most that exists at once in between.
      generated_code: the instructions.
      flops: floating-point operations.
      bytes_accessed: what operations read and write, in memory and on the chip.
      collectives: by kind: `count`, `bytes` of what a chip holds afterwards, and `sent_bytes`.
      compile_seconds: on this machine.
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

    @property
    def total(self) -> int:
        """The memory that a chip needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.generated_code

    @property
    def sent_bytes(self) -> int:
        """What a chip sends to others."""
        return sum(exchange["sent_bytes"] for exchange in self.collectives.values())


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A program that the compiler refused, for it needs `needed` bytes of a chip's memory, arguments not counted."""

    batch_size: int
    batch_per_chip: int
    needed: int


def chip_of(topology: str) -> Chip:
    """The chip of a topology's name, such as `v5e:4x4`.

    Raises:
      UserError: no such chip, or no shape.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = "; ".join(f"{name}: {shapes}" for name, shapes in _SHAPES.items())
        raise UserError(f"topology {topology!r} is not known; write CHIP:SHAPE, for instance v5e:4x4 ({known})")
    return CHIPS[generation]


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice, one a chip. They can be compiled for.

    Raises:
      UserError: `libtpu` is not installed, or there is no such slice.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed; install the extra: pip install 'deeplab_jax[tpu]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(topology, platform="tpu", **dict(chip.topology_options))
    except jax.errors.JaxRuntimeError as error:
        shapes = _SHAPES[topology.partition(":")[0]]
        message = " ".join(str(error).split())
        raise UserError(f"topology {topology!r} does not exist ({message}); choose from {shapes}") from error
    return described.devices


def libtpu_version() -> str:
    """Of the compiler."""
    return importlib.metadata.version("libtpu")


def lowered(
    config: ConfigDict,
    devices: Sequence[jax.Device],
    *,
    num_classes: int,
    inference: bool = False,
) -> jax.stages.Lowered:
    """The step that a config trains with, or evaluates with, traced for devices that need not be there.

    Args:
      config: a whole config; no data are opened.
      devices: of `topology_devices`.
      num_classes: of the data set.
      inference: the evaluation's step instead of the training's.

    Raises:
      UserError: a config that cannot be run on so many devices.
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
) -> Program | TooLarge:
    """Compiles what `lowered` traces, whose arguments and errors it has.

    With `batch_per_chip` the batch is so many images for each chip, or for the chips that share their rows.
    """
    sizes = mesh_lib.mesh_sizes(config.mesh, len(devices))
    shards = sizes["data"] * sizes["fsdp"]
    if batch_per_chip is not None:
        config = config.copy_and_resolve_references()
        config.data.batch_size = config.eval.batch_size = batch_per_chip * shards
    traced = lowered(config, devices, num_classes=num_classes, inference=inference)
    batch_size = config_lib.eval_batch_size(config) if inference else config.data.batch_size
    begin = time.monotonic()
    try:
        compiled = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return TooLarge(batch_size, batch_size // shards, needed)
    seconds = time.monotonic() - begin
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Program(
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
        collectives=by_kind(collectives.collectives(compiled.as_text())),
        compile_seconds=seconds,
    )


def _train_step(config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
    sizes = {"batch_size": config.data.batch_size, "num_examples": _EXAMPLES}
    total = config_lib.duration_steps(config.train.duration, field="train.duration", **sizes) or 1
    warmup = config_lib.duration_steps(config.optimizer.warmup, field="optimizer.warmup", total_steps=total, **sizes)
    program = build_program(config, num_classes, mesh, total_steps=total, warmup_steps=warmup or 0)
    return program.step, (program.shapes, program.batch_shapes)


def _eval_step(config: ConfigDict, num_classes: int, mesh: jax.sharding.Mesh):
    protocol = protocol_for(config)
    model = build_for_mesh(config, num_classes, mesh, input_sizes=protocol.input_sizes)
    variables = abstract_variables(model)
    variables = sharding.with_shardings(variables, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    count = config_lib.eval_batch_size(config)
    if protocol.eval_size is None:  # there is no data set whose largest image is known
        protocol = dataclasses.replace(protocol, eval_size=protocol.train_size)
    image, label = protocol.batch_sizes(protocol.eval_size)
    batch = {
        "image": ((count, *image, config.model.in_channels), np.uint8),
        "label": ((count, *label), np.uint8),
        "size": ((count, 2), np.int32),
        "valid": ((count,), np.bool_),
    }
    return jit_eval_step(config, model, mesh), (variables, sharding.abstract_batch(batch, mesh))


def needed_bytes(message: str) -> int | None:
    """How much memory a program needs, from what the compiler says of one that is too large; None of other errors."""
    found = _NEEDED.search(message)
    return None if found is None else round(float(found["needed"] or found["used"]) * GIB)


def by_kind(exchanges: Sequence[collectives.Collective]) -> dict[str, dict[str, int]]:
    """Collectives summed up by kind, see `Program.collectives`."""
    sums = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "sent_bytes": 0})
    for exchange in exchanges:
        entry = sums[exchange.kind]
        entry["count"] += 1
        entry["bytes"] += exchange.num_bytes
        entry["sent_bytes"] += exchange.sent_bytes
    return dict(sums)


def largest_batch(one: tuple[int, int], other: tuple[int, int], usable: int) -> int:
    """The largest batch that fits into `usable` bytes, on the line through two (batch, bytes) points; 0 if none does.

    Raises:
      ValueError: the line does not rise.
    """
    (batch, size), (other_batch, other_size) = one, other
    slope = (other_size - size) / (other_batch - batch)
    if slope <= 0:
        raise ValueError(f"{other_batch} images take no more than {batch}: {other_size} and {size} bytes")
    return max(0, math.floor(batch + (usable - size) / slope))


def find_batch(
    compile_at: Callable[[int], Program | TooLarge], usable: int, *, first: int
) -> tuple[int, list[Program | TooLarge]]:
    """Predicts the largest batch a chip from two compiled programs, and compiles that one too.

    Args:
      compile_at: compiles for so many images a chip.
      usable: bytes of a chip's memory.
      first: images a chip of the first program; the second has twice as many, and predictions are multiples.

    Returns:
      What was predicted, and the programs in the order in which they were compiled. Memory need not rise along a line:
      where the predicted program turns out too large, the largest that fits is searched for by halving.

    Raises:
      UserError: not even the second program fits.
    """
    programs = []
    for batch in (first, 2 * first):
        programs.append(compile_at(batch))
        if isinstance(programs[-1], TooLarge):
            raise UserError(f"{batch} images a chip do not fit, so there is nothing to predict from; begin with fewer")
    predicted = largest_batch(*((program.batch_per_chip, program.total) for program in programs), usable)
    predicted -= predicted % first
    fits, asked = 2, predicted // first  # in multiples of `first`
    if asked <= fits:
        return predicted, programs
    programs.append(compile_at(asked * first))
    too_large = fits if isinstance(programs[-1], Program) else asked  # nothing between them: the prediction is right
    while too_large - fits > 1:
        asked = (fits + too_large) // 2
        programs.append(compile_at(asked * first))
        if isinstance(programs[-1], Program):
            fits = asked
        else:
            too_large = asked
    return predicted, programs


def to_json(topology: str, program: Program | TooLarge, *, predicted: int | None = None) -> dict[str, Any]:
    """Everything that `tables` shows, and the chip figures it follows from, as JSON holds it."""
    chip = chip_of(topology)
    values = dataclasses.asdict(program) | {
        "topology": topology,
        "chip": dataclasses.asdict(chip),
        "fits": isinstance(program, Program),
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }
    if predicted is not None:
        values["predicted_batch_per_chip"] = predicted
    if isinstance(program, Program):
        values["total"] = program.total
        values["sent_bytes"] = program.sent_bytes
        values["roofline"] = {
            name: dataclasses.asdict(bounds)
            | {
                "seconds": bounds.seconds,
                "bound": bounds.bound,
                "images_per_second": program.batch_size / bounds.seconds,
            }
            for name, bounds in _rooflines(program).items()
        }
    return values


def tables(topology: str, program: Program) -> list[Table]:
    """What `deeplab-jax aot` prints of a program."""
    chip = chip_of(topology)
    sizes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.items())
    title = f"{topology}, {sizes}, {program.batch_per_chip} a chip, {program.batch_size} a step"
    memory = _table(title, "a chip", "")
    for name in ("arguments", "outputs", "aliased", "temporaries", "generated_code"):
        memory.add_row(name.replace("_", " "), _bytes(getattr(program, name)))
    memory.add_row("total", _bytes(program.total), style="bold")
    memory.add_row("memory that a program may use", _bytes(chip.usable_bytes))
    memory.add_section()
    memory.add_row("floating-point operations", f"{program.flops / 1e9:,.1f} G")
    memory.add_row("bytes accessed", _bytes(program.bytes_accessed))
    memory.add_row("compiled in", f"{program.compile_seconds:.0f} s")

    exchanges = _table("between chips, a chip and step", "kind", "count", "bytes", "sent")
    for kind, entry in sorted(program.collectives.items()):
        exchanges.add_row(kind, str(entry["count"]), _bytes(entry["bytes"]), _bytes(entry["sent_bytes"]))

    bounds = _table(
        "this program at the published peaks of a chip (ms a step)",
        "chip",
        "compute",
        "memory",
        "interconnect",
        "bound",
        "step",
        "images/s",
    )
    for name, line in _rooflines(program).items():
        times = (f"{1e3 * seconds:.2f}" for seconds in (line.compute, line.memory, line.interconnect))
        rate = program.batch_size / line.seconds
        bounds.add_row(name, *times, line.bound, f"{1e3 * line.seconds:.2f}", f"{rate:,.0f}")
    return [memory, exchanges, bounds]


def report(
    config: ConfigDict,
    topology: str,
    *,
    num_classes: int,
    batch_per_chip: int | None,
    inference: bool,
    search: bool,
    console: Console,
    out: Console,
) -> dict[str, Any]:
    """Compiles a config for a slice and prints what it needs; with `search` the largest batch a chip that fits.

    Returns:
      `to_json` of the program, or of the largest one.

    Raises:
      UserError: see `topology_devices`, `compile_program` and `find_batch`.
    """
    devices = topology_devices(topology)
    chip = chip_of(topology)

    def compile_at(batch: int | None) -> Program | TooLarge:
        program = compile_program(config, devices, num_classes=num_classes, batch_per_chip=batch, inference=inference)
        what = f"{program.batch_per_chip} a chip"
        if isinstance(program, TooLarge):
            line = f"{what} do not fit: {_bytes(program.needed)} of {_bytes(chip.usable_bytes)} without arguments"
        else:
            line = f"{what} fit: {_bytes(program.total)} of {_bytes(chip.usable_bytes)}"
        console.print(line, soft_wrap=True, highlight=False)
        return program

    predicted = None
    if search:
        first = batch_per_chip or config.train.accumulate_steps
        predicted, programs = find_batch(compile_at, chip.usable_bytes, first=first)
        program = max((each for each in programs if isinstance(each, Program)), key=lambda each: each.batch_per_chip)
        out.print(f"largest batch a chip: predicted {predicted}, compiled {program.batch_per_chip}", highlight=False)
    else:
        program = compile_at(batch_per_chip)
    if isinstance(program, Program):
        for table in tables(topology, program):
            out.print(table)
    return to_json(topology, program, predicted=predicted)


def _rooflines(program: Program):
    needs = {"flops": program.flops, "bytes_accessed": program.bytes_accessed, "sent_bytes": program.sent_bytes}
    return {name: roofline(chip, **needs) for name, chip in CHIPS.items()}


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _bytes(count: int | float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"
