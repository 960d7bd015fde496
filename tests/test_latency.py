"""The latency command: what is timed, and what is printed."""

import json

import pytest
from rich.console import Console

from deeplab_jax import cli
from deeplab_jax.latency import Latency, latency_table, measure_latency
from deeplab_jax.pretrained import load


def test_every_size_and_batch_is_timed(trained):
    results = measure_latency(load(trained), [(32, 48), (64, 64)], [1, 3], repetitions=2)
    assert [(result.size, result.batch) for result in results] == [
        ((32, 48), 1), ((32, 48), 3), ((64, 64), 1), ((64, 64), 3),
    ]  # fmt: skip
    assert all(0 < result.p50 <= result.p95 for result in results)


def test_the_table_counts_pictures_not_batches():
    console = Console(record=True, width=100)
    console.print(latency_table([Latency((32, 48), 4, 20.0, 31.5)], "net"))
    (line,) = (line for line in console.export_text().splitlines() if "32x48" in line)
    assert line.replace("│", " ").split() == ["32x48", "4", "20.0", "31.5", "200.0"]


def test_latency_from_the_command_line(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([
            "benchmark-latency", "--workdir", str(trained), "--sizes", "32x32", "--batches", "1,2",
            "--repetitions", "2", "--json", str(tmp_path / "latency.json"),
        ])  # fmt: skip
    assert done.value.code == 0
    assert capsys.readouterr().out.count("32x32") == 2
    results = json.loads((tmp_path / "latency.json").read_text())["results"]
    assert [(result["size"], result["batch"]) for result in results] == [([32, 32], 1), ([32, 32], 2)]
