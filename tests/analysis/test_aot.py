"""Compiling for devices that are elsewhere: CPU devices stand in here, test_aot_tpu.py has the real compiler."""

import functools
import importlib.util
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from deeplab_jax.analysis import aot, collectives
from deeplab_jax.analysis.aot import Program, TooLarge
from deeplab_jax.analysis.tpu_specs import GIB
from deeplab_jax.cli import main
from deeplab_jax.errors import UserError
from deeplab_jax.models import PARTS, build_for_mesh
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import optimizer
from deeplab_jax.training.state import TrainState

CLASSES = 4


def program(batch: int, total: int) -> Program:
    return Program(
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
    with pytest.raises(UserError, match=rf"topology '{topology}' is not known; .*v5e: 2x2, 2x4, 4x4.*v6e: "):
        aot.topology_devices(topology)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'deeplab_jax\[tpu\]'"):
        aot.topology_devices("v5e:2x2")


# ---- Batches ----


@pytest.mark.parametrize(
    ("usable", "largest"),
    [(100, 9), (99, 8), (20, 1), (19, 0), (1, 0)],  # 10 bytes, and 10 an image
)
def test_the_largest_batch_lies_on_the_line(usable, largest):
    assert aot.largest_batch((2, 30), (4, 50), usable) == largest


def test_a_line_that_does_not_rise_predicts_nothing():
    with pytest.raises(ValueError, match="4 images take no more than 2"):
        aot.largest_batch((2, 30), (4, 30), 100)


def compiler(usable: int, *, bend: int = 0, asked: list[int]):
    """Ten bytes, ten an image, and `bend` more above four images."""

    def compile_at(batch: int) -> Program | TooLarge:
        asked.append(batch)
        total = 10 + 10 * batch + (bend if batch > 4 else 0)
        return program(batch, total) if total <= usable else TooLarge(8 * batch, batch, total)

    return compile_at


def test_a_predicted_batch_is_confirmed_by_a_third_program():
    asked = []
    predicted, programs = aot.find_batch(compiler(107, asked=asked), 107, first=2)
    assert (predicted, asked) == (8, [2, 4, 8])  # nine fit, in twos eight
    assert isinstance(programs[-1], Program)


def test_a_prediction_that_fails_is_followed_by_halving():
    asked = []
    predicted, programs = aot.find_batch(compiler(107, bend=25, asked=asked), 107, first=1)
    assert (predicted, asked) == (9, [1, 2, 9, 5, 7, 8])
    assert [type(each) for each in programs] == [Program, Program, TooLarge, Program, Program, TooLarge]


def test_nothing_is_predicted_from_what_does_not_fit():
    with pytest.raises(UserError, match="4 images a chip do not fit"):
        aot.find_batch(compiler(45, asked=[]), 45, first=2)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory on HBM, the total memory required (58.50G) exceeds available HBM (15.75G).", 58.5 * GIB),
        ("Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm. Exceeded", 20.25 * GIB),
        ("UNIMPLEMENTED: sorting of more than 15.75G elements", None),
    ],
)
def test_what_the_compiler_says_of_large_programs_is_read(message, needed):
    assert aot.needed_bytes(message) == needed


# ---- Programs ----


def test_collectives_are_summed_by_kind():
    exchanges = [
        collectives.Collective("all-reduce", (("f32", (10,)), ("bf16", (4, 5))), "", devices=4),
        collectives.Collective("all-reduce", (("f32", (10,)),), "", devices=2),
        collectives.Collective("collective-permute", (("u8", (3,)),), "", devices=4),
    ]
    assert aot.by_kind(exchanges) == {
        "all-reduce": {"count": 2, "bytes": 80 + 40, "sent_bytes": 120 + 40},
        "collective-permute": {"count": 1, "bytes": 3, "sent_bytes": 3},
    }


@pytest.fixture(scope="module")
def compiled():
    """Compiles a step of a tiny config once for each way in which the tests look at it."""

    @functools.cache
    def compile_once(config_json: str, **options) -> Program:
        from deeplab_jax import config as config_lib

        config = config_lib.from_dict(json.loads(config_json))
        return aot.compile_program(config, jax.devices(), num_classes=CLASSES, **options)

    return lambda config, **options: compile_once(json.dumps(config.to_dict()), **options)


def test_a_program_holds_its_share_of_the_state_and_of_the_batch(tiny_config, compiled):
    tiny_config.mesh.update({"data": 2, "fsdp": 4, "fsdp_min_size": 64})
    found = compiled(tiny_config, batch_per_chip=2)
    assert (found.batch_size, found.batch_per_chip, found.mesh["fsdp"]) == (16, 2, 4)
    mesh = mesh_lib.make_mesh(tiny_config.mesh)
    rule = optimizer.make_optimizer(tiny_config.optimizer, 2, parts=PARTS)
    shapes = TrainState.shapes(build_for_mesh(tiny_config, CLASSES, mesh), rule)
    places = sharding.state_shardings(shapes, mesh, fsdp_min_size=64)
    state = sum(
        np.prod(place.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
    )
    assert found.arguments == pytest.approx(state + 2 * 32 * 32 * 4, rel=1e-3)
    assert found.aliased == pytest.approx(state, rel=1e-3)  # donated
    assert found.total == found.arguments + found.outputs - found.aliased + found.temporaries + found.generated_code
    assert found.flops > 0
    assert {"all-reduce", "all-gather"} <= set(found.collectives)


def test_the_config_has_the_batch_if_none_is_given(tiny_config, compiled):
    tiny_config.mesh.data = -1
    found = compiled(tiny_config)
    assert (found.batch_size, found.batch_per_chip) == (8, 1)
    assert set(found.collectives) == {"all-reduce"}


def test_inference_exchanges_counts_alone(tiny_config, compiled):
    tiny_config.mesh.data = -1
    found = compiled(tiny_config, inference=True, batch_per_chip=2)
    assert found.batch_size == 16
    assert found.collectives["all-reduce"]["bytes"] < 200  # loss, count, 4x4 confusion matrix, images
    assert found.aliased == 0


def test_a_batch_that_does_not_divide_is_refused(tiny_config):
    tiny_config.mesh.data = -1
    tiny_config.data.batch_size = 12
    with pytest.raises(UserError, match="data.batch_size=12 does not divide over 8 devices"):
        aot.compile_program(tiny_config, jax.devices(), num_classes=CLASSES)


@pytest.fixture
def on_cpu_devices(monkeypatch):
    """The command with CPU devices in place of a slice, leaving JAX as it was."""
    monkeypatch.setattr(aot, "topology_devices", lambda topology: jax.devices())
    monkeypatch.setattr(aot, "libtpu_version", lambda: "none")
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
    assert "2 a chip fit: " in printed.err
    assert "v5e:2x4, data 8 x fsdp 1 x spatial 1, 2 a chip, 16 a step" in " ".join(printed.out.split())
    assert values["fits"]
    assert values["batch_size"] == 16
    assert f"{values['total'] / 2**20:.2f} MiB" in printed.out
    v5p = values["roofline"]["v5p"]
    assert v5p["memory"] == values["bytes_accessed"] / 2765e9
    assert v5p["compute"] == values["flops"] / 459e12
    assert v5p["images_per_second"] == 16 / v5p["seconds"]
    assert f"{16 / v5p['seconds']:,.0f}" in printed.out


def test_the_report_of_a_search_is_of_the_largest_program(monkeypatch, on_cpu_devices, tiny_config):
    sized = {2: program(2, 3 * GIB), 4: program(4, 5 * GIB), 8: program(8, 9 * GIB), 10: program(10, 11 * GIB)}
    sized |= {12: program(12, 13 * GIB), 14: TooLarge(112, 14, 17 * GIB)}
    monkeypatch.setattr(aot, "compile_program", lambda *args, batch_per_chip, **options: sized[batch_per_chip])
    out, console = Console(record=True, width=140), Console(record=True, width=140)
    values = aot.report(
        tiny_config,
        "v5e:2x4",
        num_classes=CLASSES,
        batch_per_chip=2,
        inference=False,
        search=True,
        console=console,
        out=out,
    )
    assert (values["batch_per_chip"], values["predicted_batch_per_chip"]) == (12, 14)
    assert "predicted 14, compiled 12" in out.export_text()
    assert "14 a chip do not fit: 17.00 GiB of 15.75 GiB" in console.export_text()


def test_a_program_that_does_not_fit_is_reported_as_such(monkeypatch, on_cpu_devices, tiny_config):
    monkeypatch.setattr(aot, "compile_program", lambda *args, **options: TooLarge(8, 1, 20 * GIB))
    silent = Console(quiet=True)
    options = {"num_classes": CLASSES, "batch_per_chip": None, "inference": False, "search": False}
    values = aot.report(tiny_config, "v5e:2x4", console=silent, out=silent, **options)
    assert not values["fits"]
    assert values["needed"] == 20 * GIB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:2x4", "--batch-per-chip", "0"], "--batch-per-chip 0 must be at least 1"),
        (["--topology", "v7:2x2"], "topology 'v7:2x2' is not known"),
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


def test_a_step_with_a_teacher_takes_its_logits_too(tiny_config, compiled):
    tiny_config.mesh.data = -1
    alone = compiled(tiny_config)
    tiny_config.loss.teacher = "somewhere"
    assert compiled(tiny_config).arguments - alone.arguments == 32 * 32 * CLASSES * 4  # float32, an image a chip
