"""AOT analysis with CPU devices in place of a TPU slice; test_aot_tpu.py uses the TPU compiler."""

import dataclasses
import importlib.util
import json
import logging

import jax
import numpy as np
import pytest
from rich.console import Console

from deeplab_jax.analysis import aot, aot_compile, aot_search, collectives
from deeplab_jax.analysis.aot_compile import CompiledProgram, TooLarge
from deeplab_jax.analysis.tpu_specs import GIB
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState

CLASSES = 4


@pytest.fixture(autouse=True)
def plain_xla(monkeypatch):
    """The operations of a TPU, which also compile faster than those for CPUs."""
    monkeypatch.setenv("DEEPLAB_JAX_OPS", "xla")


def program(batch: int, total: int) -> CompiledProgram:
    return CompiledProgram(
        batch_size=8 * batch,
        batch_per_chip=batch,
        mesh={"data": 8, "fsdp": 1, "spatial": 1},
        arguments=total,
        outputs=7,
        aliased=7,
        temporaries=0,
        generated_code=0,
        flops=1e12,
        bytes_accessed=1e9,
        collectives={},
        compile_seconds=1.0,
    )


# ---- Topologies ----


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v5e:four", "v9:2x2", "v5e:4x4x4x4", "4x4", ""])
def test_an_unknown_topology_is_one_line_with_known_ones(topology):
    with pytest.raises(UserError, match=rf"unknown topology '{topology}'; .*v5e: 2x2, 2x4, 4x4.*v6e: "):
        aot_compile.topology_devices(topology)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'deeplab_jax\[tpu\]'"):
        aot_compile.topology_devices("v5e:2x2")


# ---- Batches ----


@pytest.mark.parametrize(
    ("usable", "largest"),
    [(100, 9), (99, 8), (20, 1), (19, 0), (1, 0)],  # 10 bytes, plus 10 per image
)
def test_memory_is_extrapolated_linearly(usable, largest):
    assert aot_search.extrapolate_batch((2, 30), (4, 50), usable) == largest


def test_memory_that_does_not_grow_predicts_nothing():
    with pytest.raises(ValueError, match="4 images need 30 bytes, which is not more than 30 for 2 images"):
        aot_search.extrapolate_batch((2, 30), (4, 30), 100)


def compiler(usable: int, *, bend: int = 0, asked: list[int]):
    """Ten bytes, plus ten per image, and `bend` more above four images."""

    def compile_at(batch: int) -> CompiledProgram | TooLarge:
        asked.append(batch)
        total = 10 + 10 * batch + (bend if batch > 4 else 0)
        return program(batch, total) if total <= usable else TooLarge(8 * batch, batch, total)

    return compile_at


def test_a_third_program_confirms_the_predicted_batch():
    asked = []
    predicted, programs = aot_search.find_largest_batch(compiler(107, asked=asked), 107, first=2)
    assert (predicted, asked) == (8, [2, 4, 8])  # nine images fit, and eight is the largest multiple of two
    assert isinstance(programs[-1], CompiledProgram)


def test_a_wrong_prediction_is_followed_by_bisection():
    asked = []
    predicted, programs = aot_search.find_largest_batch(compiler(107, bend=25, asked=asked), 107, first=1)
    assert (predicted, asked) == (9, [1, 2, 9, 5, 7, 8])
    kinds = [CompiledProgram, CompiledProgram, TooLarge, CompiledProgram, CompiledProgram, TooLarge]
    assert [type(each) for each in programs] == kinds


def test_the_first_two_programs_must_fit():
    with pytest.raises(UserError, match="4 images per chip do not fit"):
        aot_search.find_largest_batch(compiler(45, asked=[]), 45, first=2)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory on HBM, the total memory required (58.50G) exceeds available HBM (15.75G).", 58.5 * GIB),
        ("Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm. Exceeded", 20.25 * GIB),
        ("UNIMPLEMENTED: sorting of more than 15.75G elements", None),
    ],
)
def test_messages_about_too_large_programs_are_parsed(message, needed):
    assert aot_compile.parse_needed_bytes(message) == needed


# ---- Programs ----


def test_collectives_are_summed_by_kind():
    found = [
        collectives.Collective("all-reduce", (("f32", (10,)), ("bf16", (4, 5))), "", devices=4),
        collectives.Collective("all-reduce", (("f32", (10,)),), "", devices=2),
        collectives.Collective("collective-permute", (("u8", (3,)),), "", devices=4),
    ]
    assert aot_compile.sum_by_kind(found) == {
        "all-reduce": {"count": 2, "bytes": 80 + 40, "sent_bytes": 120 + 40},
        "collective-permute": {"count": 1, "bytes": 3, "sent_bytes": 3},
    }


def state_bytes(config) -> int:
    """The size of the train state on each device."""
    mesh = mesh_lib.make_mesh(config.mesh)
    transformation, _ = optimizer.make(config.optimizer, 2, parts=PARTS)
    shapes = TrainState.shapes(build_for_mesh(config, CLASSES, mesh), transformation)
    shardings = sharding.state_shardings(shapes, mesh, fsdp_min_size=config.mesh.fsdp_min_size)
    return sum(
        np.prod(place.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    )


def test_a_program_holds_its_share_of_the_state_and_of_the_batch(tiny_config):
    tiny_config.mesh.update({"data": 2, "fsdp": 4, "fsdp_min_size": 64})
    found = aot_compile.compile_program(tiny_config, jax.devices(), num_classes=CLASSES, batch_per_chip=2)
    assert (found.batch_size, found.batch_per_chip, found.mesh["fsdp"]) == (16, 2, 4)
    state = state_bytes(tiny_config)
    assert found.arguments == pytest.approx(state + 2 * 32 * 32 * 4, rel=1e-3)
    assert found.aliased == pytest.approx(state, rel=1e-3)  # donated
    assert found.total == found.arguments + found.outputs - found.aliased + found.temporaries + found.generated_code
    assert found.flops > 0
    assert {"all-reduce", "all-gather"} <= set(found.collectives)


def test_the_default_batch_is_that_of_the_config_and_a_teacher_adds_its_logits(tiny_config):
    tiny_config.mesh.data = -1
    tiny_config.loss.teacher = "somewhere"
    found = aot_compile.compile_program(tiny_config, jax.devices(), num_classes=CLASSES)
    assert (found.batch_size, found.batch_per_chip) == (8, 1)
    assert set(found.collectives) == {"all-reduce"}
    batch, logits = 32 * 32 * 4, 32 * 32 * CLASSES * 4  # uint8 image and label, float32 logits
    assert found.arguments == pytest.approx(state_bytes(tiny_config) + batch + logits, rel=1e-3)


def test_a_batch_that_does_not_divide_is_rejected(tiny_config):
    tiny_config.mesh.data = -1
    tiny_config.data.batch_size = 12
    with pytest.raises(UserError, match=r"data\.batch_size=12 .*8 devices"):
        aot_compile.compile_program(tiny_config, jax.devices(), num_classes=CLASSES)


@pytest.fixture
def on_cpu_devices(monkeypatch):
    """Replaces the slice by the CPU devices, and restores the settings of JAX afterwards."""
    monkeypatch.setattr(aot_compile, "topology_devices", lambda topology, slices=1: jax.devices())
    monkeypatch.setattr(aot_compile, "libtpu_version", lambda: "none")
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_the_command_prints_what_it_writes(on_cpu_devices, tiny_arguments, tmp_path, capsys):
    path = tmp_path / "aot.json"
    command = ["aot", "--topology", "v5e:2x4", "--batch-per-chip", "2", "--inference", "--json", str(path)]
    with pytest.raises(SystemExit) as done:
        main.main([*command, *tiny_arguments, "--config.mesh.data=8"])
    assert done.value.code == 0
    values, printed = json.loads(path.read_text()), capsys.readouterr()
    title = "v5e:2x4, data 8 x fsdp 1 x spatial 1, 2 images per chip, 16 per step"
    assert title in " ".join(printed.out.split())
    assert values["fits"]
    assert values["batch_size"] == 16
    # Inference exchanges loss, count, the 21x21 confusion matrix and the number of images, and donates nothing.
    assert values["collectives"]["all-reduce"]["bytes"] < 200 + 4 * 21 * 21
    assert values["aliased"] == 0
    assert f"{values['total'] / 2**20:.2f} MiB" in printed.out
    v5p = values["roofline"]["v5p"]
    assert v5p["memory"] == values["bytes_accessed"] / 2765e9
    assert v5p["compute"] == values["flops"] / 459e12
    assert v5p["images_per_second"] == 16 / v5p["seconds"]
    assert f"{16 / v5p['seconds']:,.0f}" in printed.out


def test_slices_have_rows_of_their_own(monkeypatch, on_cpu_devices, tiny_config):
    between = {"all-reduce": {"count": 58, "bytes": 40 * 2**20, "sent_bytes": 40 * 2**20}}
    two = dataclasses.replace(program(2, 3 * GIB), slices=2, between_slices=between)
    monkeypatch.setattr(aot_compile, "compile_program", lambda *args, **options: two)
    result = aot.analyze(tiny_config, "v5e:2x4", num_classes=CLASSES, slices=2)
    values, out = result.to_json(), Console(record=True, width=140)
    assert values["slices"] == 2
    assert values["network_bytes"] == 40 * 2**20
    assert values["roofline"]["v5e"]["network"] == 40 * 2**20 / 3.125e9  # 13.4 ms
    assert values["roofline"]["v5e"]["bound"] == "network"
    assert values["roofline"]["v4"]["network"] == 0  # Google does not publish it
    for table in result.tables():
        out.print(table)
    text = out.export_text()
    assert "2 slices of v5e:2x4" in text
    assert "all-reduce between slices" in text
    assert "13.42" in text


def test_a_search_reports_the_largest_program(monkeypatch, on_cpu_devices, tiny_config, caplog):
    caplog.set_level(logging.INFO, "deeplab_jax")
    sized = {2: program(2, 3 * GIB), 4: program(4, 5 * GIB), 8: program(8, 9 * GIB), 10: program(10, 11 * GIB)}
    sized |= {12: program(12, 13 * GIB), 14: TooLarge(112, 14, 17 * GIB)}
    monkeypatch.setattr(aot_compile, "compile_program", lambda *args, batch_per_chip, **options: sized[batch_per_chip])
    result = aot.analyze(tiny_config, "v5e:2x4", num_classes=CLASSES, batch_per_chip=2, search=True)
    values, out = result.to_json(), Console(record=True, width=140)
    for table in result.tables():
        out.print(table)
    assert (values["batch_per_chip"], values["predicted_batch_per_chip"]) == (12, 14)
    assert "predicted 14, compiled 12" in out.export_text()
    assert any("14 images per chip do not fit: 17.00 GiB of 15.75 GiB" in message for message in caplog.messages)
    assert "12 images per chip fit: 13.00 GiB of 15.75 GiB" in caplog.messages


def test_a_program_that_does_not_fit_is_reported_as_such(monkeypatch, on_cpu_devices, tiny_config):
    monkeypatch.setattr(aot_compile, "compile_program", lambda *args, **options: TooLarge(8, 1, 20 * GIB))
    result = aot.analyze(tiny_config, "v5e:2x4", num_classes=CLASSES)
    assert not result.to_json()["fits"]
    assert result.to_json()["needed"] == 20 * GIB
    assert result.tables() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:2x4", "--batch-per-chip", "0"], "--batch-per-chip: '0' is not an integer between 1 and"),
        (["--topology", "v7:2x2"], "unknown topology 'v7:2x2'"),
        ([], "the following arguments are required: --topology"),
    ],
)
def test_mistakes_of_the_command_are_one_line(arguments, message, tiny_arguments, capsys):
    before = jax.config.jax_enable_compilation_cache
    with pytest.raises(SystemExit) as done:
        main.main(["aot", *arguments, *tiny_arguments])
    jax.config.update("jax_enable_compilation_cache", before)
    assert done.value.code != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
