"""The latency table and the command `benchmark-latency`."""

import json

import pytest
from rich.console import Console

from deeplab_jax.analysis.latency import Latency, latency_table
from deeplab_jax.cli import main


def test_the_table_counts_images_not_batches():
    console = Console(record=True, width=100)
    console.print(latency_table([Latency((32, 48), 4, 20.0, 31.5)], "net"))
    (line,) = (line for line in console.export_text().splitlines() if "32x48" in line)
    assert line.replace("│", " ").split() == ["32x48", "4", "20.0", "31.5", "200.0"]


def test_latency_from_the_command_line(trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main.main([
            "benchmark-latency", "--workdir", str(trained), "--sizes", "32x32", "--batches", "1,2",
            "--repetitions", "2", "--json", str(tmp_path / "latency.json"),
        ])  # fmt: skip
    assert done.value.code == 0
    assert capsys.readouterr().out.count("32x32") == 2
    results = json.loads((tmp_path / "latency.json").read_text())["results"]
    assert [(result["size"], result["batch"]) for result in results] == [([32, 32], 1), ([32, 32], 2)]
    assert all(0 < result["p50"] <= result["p95"] for result in results)
