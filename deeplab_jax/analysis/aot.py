"""Memory, computation and communication of a config on a TPU slice, from programs compiled on this machine.

The compiler knows memory, operations and collectives of a program before it runs, but not its run time. The rooflines
of `deeplab_jax.analysis.tpu_specs` bound that.
"""

import dataclasses
import logging
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.table import Table

from deeplab_jax.analysis import aot_compile
from deeplab_jax.analysis.aot_compile import CompiledProgram, TooLarge, get_chip
from deeplab_jax.analysis.aot_search import find_largest_batch
from deeplab_jax.analysis.tpu_specs import CHIPS, GIB, Roofline, roofline

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AotResult:
    """The cost of a config's step on a TPU slice.

    Attributes:
      topology: the shape of each slice, such as `v5e:4x4`.
      program: the compiled program. After a search, the largest one that fits.
      predicted: after a search, the predicted batch per chip.
    """

    topology: str
    program: CompiledProgram | TooLarge
    predicted: int | None = None

    @property
    def fits(self) -> bool:
        """True if the program fits into the chips' memory."""
        return isinstance(self.program, CompiledProgram)

    def to_json(self) -> dict[str, Any]:
        """All figures of `tables`, and the figures of the chip that they depend on, as JSON values."""
        program = self.program
        values = dataclasses.asdict(program) | {
            "topology": self.topology,
            "chip": dataclasses.asdict(get_chip(self.topology)),
            "fits": self.fits,
            "jax": jax.__version__,
            "libtpu": aot_compile.libtpu_version(),
        }
        if self.predicted is not None:
            values["predicted_batch_per_chip"] = self.predicted
        if isinstance(program, CompiledProgram):
            values["total"] = program.total
            values["sent_bytes"] = program.sent_bytes
            values["network_bytes"] = program.network_bytes
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

    def tables(self) -> list[Table]:
        """Tables of memory, collectives and rooflines. Empty if the program does not fit."""
        if isinstance(self.program, TooLarge):
            return []
        return [self._memory_table(), self._collectives_table(), self._roofline_table()]

    def _memory_table(self) -> Table:
        program = self.program
        sizes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.items())
        topology = self.topology if program.slices == 1 else f"{program.slices} slices of {self.topology}"
        title = f"{topology}, {sizes}, {program.batch_per_chip} images per chip, {program.batch_size} per step"
        table = _new_table(title, "per chip", "")
        if self.predicted is not None:
            found = f"predicted {self.predicted}, compiled {program.batch_per_chip}"
            table.add_row("largest batch", found)
            table.add_section()
        for name in ("arguments", "outputs", "aliased", "temporaries", "generated_code"):
            table.add_row(name.replace("_", " "), _format_bytes(getattr(program, name)))
        table.add_row("total", _format_bytes(program.total), style="bold")
        table.add_row("memory available to a program", _format_bytes(get_chip(self.topology).usable_bytes))
        table.add_section()
        table.add_row("floating-point operations", f"{program.flops / 1e9:,.1f} G")
        table.add_row("bytes accessed", _format_bytes(program.bytes_accessed))
        table.add_row("compile time", f"{program.compile_seconds:.0f} s")
        return table

    def _collectives_table(self) -> Table:
        table = _new_table("communication, per chip and step", "kind", "count", "bytes", "sent")
        for where, sums in (("", self.program.collectives), (" between slices", self.program.between_slices)):
            for kind, entry in sorted(sums.items()):
                sizes = (_format_bytes(entry["bytes"]), _format_bytes(entry["sent_bytes"]))
                table.add_row(kind + where, str(entry["count"]), *sizes)
        return table

    def _roofline_table(self) -> Table:
        resources = ["compute", "memory", "interconnect"] + ["network"] * (self.program.slices > 1)
        table = _new_table(
            "roofline: this program at the published peaks (ms per step)",
            "chip",
            *resources,
            "bound",
            "step",
            "images/s",
        )
        for name, line in _rooflines(self.program).items():
            times = (f"{1e3 * getattr(line, resource):.2f}" for resource in resources)
            rate = self.program.batch_size / line.seconds
            table.add_row(name, *times, line.bound, f"{1e3 * line.seconds:.2f}", f"{rate:,.0f}")
        return table


def analyze(
    config: ConfigDict,
    topology: str,
    *,
    num_classes: int,
    slices: int = 1,
    batch_per_chip: int | None = None,
    inference: bool = False,
    search: bool = False,
) -> AotResult:
    """Compiles the step of a config for a TPU slice.

    Args:
      config: a whole config. No data set is opened.
      topology: the shape of each slice, such as `v5e:4x4`.
      num_classes: number of classes of the data set.
      slices: number of slices, which the network of the data center connects.
      batch_per_chip: images per chip; default: the batch size of the config. A search starts with it.
      inference: compile the evaluation step instead of the train step.
      search: search for the largest batch per chip that fits.

    Raises:
      UserError: the compiler is not installed, the slice does not exist, the config cannot run on it, or a search finds
        no batch that fits.
    """
    devices = aot_compile.topology_devices(topology, slices)
    usable = get_chip(topology).usable_bytes

    def compile_at(batch: int | None) -> CompiledProgram | TooLarge:
        program = aot_compile.compile_program(
            config, devices, num_classes=num_classes, batch_per_chip=batch, inference=inference
        )
        if isinstance(program, TooLarge):
            found = f"do not fit: {_format_bytes(program.needed)} of {_format_bytes(usable)}, not counting arguments"
        else:
            found = f"fit: {_format_bytes(program.total)} of {_format_bytes(usable)}"
        logger.info("%d images per chip %s", program.batch_per_chip, found)
        return program

    if not search:
        return AotResult(topology, compile_at(batch_per_chip))
    first = batch_per_chip or config.train.accumulate_steps
    predicted, programs = find_largest_batch(compile_at, usable, first=first)
    fitting = [program for program in programs if isinstance(program, CompiledProgram)]
    return AotResult(topology, max(fitting, key=lambda program: program.batch_per_chip), predicted)


def _rooflines(program: CompiledProgram) -> dict[str, Roofline]:
    fields = ("flops", "bytes_accessed", "sent_bytes", "network_bytes")
    needs = {field: getattr(program, field) for field in fields}
    return {name: roofline(chip, **needs) for name, chip in CHIPS.items()}


def _new_table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _format_bytes(count: int | float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"
