"""The benchmarks' parent on workers that print made-up figures, and one real row at its smallest."""

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import machine, results, runner
from benchmarks.rows import OUR_ENVIRONMENT, SUITES, Row, Side, all_rows
from deeplab_jax.cli import malloc

# Prints what its task holds for the pair, and notes that it ran.
FAKE_WORKER = """
import json, os, pathlib, sys
task = json.loads(sys.argv[1])
if "fails" in task:
    if isinstance(task["fails"], str):
        print("a warning", file=sys.stderr)
    raise SystemExit(task["fails"])
if "signal" in task:
    os.kill(os.getpid(), task["signal"])
with open(task["log"], "a") as log:
    log.write(task["side"] + " " + str(task["repetitions"]) + "\\n")
pair = int(pathlib.Path(task["pair_folder"]).name.removeprefix("pair"))
result = {"memory": 0, "multiply_adds": {}, "facts": {}, "versions": {"thing": "1.0"}}
result["seconds"] = {"work": task["seconds"][pair]}
print("a framework says hello")
if "silent" not in task:
    print(json.dumps(result | task.get("result", {})))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """`fake(side, seconds of each pair, **task)` makes a side of the worker above."""
    (tmp_path / "fake_worker.py").write_text(FAKE_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def side(name, seconds=((1.0,), (1.0,), (1.0,)), **task):
        common = {"side": name, "log": str(tmp_path / "log.txt"), "seconds": seconds}
        return Side(name, "fake_worker", common | task)

    return side


def row(ours, peer, **fields):
    defaults = {"key": "step/net/other", "work": "some work", "repetitions": 3, "quick_work": "less work"}
    return Row(**(defaults | {"ours": ours, "peer": peer} | fields))


def measure(a_row, pairs=2, **options):
    return runner.measure_row(a_row, {"ours": sys.executable}, pairs=pairs, **options)


def log(tmp_path):
    return (tmp_path / "log.txt").read_text().split("\n")[:-1]


def test_sides_alternate_and_ratios_are_of_pairs(fake, tmp_path):
    ours = fake("a", [[1.0, 2.0, 3.0], [8.0, 4.0, 6.0]], result={"memory": 300})
    peer = fake("b", [[4.0, 4.0, 4.0], [3.0, 3.0, 3.0]], result={"memory": 400})
    entry = measure(row(ours, peer))
    assert log(tmp_path) == ["a 3", "b 3", "a 3", "b 3"]
    measurement = entry["measurements"]["work"]
    assert measurement["ours"] == {"median": 3.5, "min": 1.0, "max": 8.0}
    assert measurement["peer"] == {"median": 3.5, "min": 3.0, "max": 4.0}
    # 2 / 4 and 6 / 3: the ratio of the medians over all would be 1.
    assert measurement["ratio"] == {"median": 1.25, "min": 0.5, "max": 2.0, "pairs": [0.5, 2.0]}
    assert entry["memory"] == {"ours": 300, "peer": 400, "ratio": 0.75}
    assert entry["versions"] == {"ours": {"thing": "1.0"}, "peer": {"thing": "1.0"}}
    assert entry["pairs"] == 2


def test_a_row_may_start_with_the_peer(fake, tmp_path):
    measure(row(fake("a"), fake("b"), peer_first=True), repetitions=1)
    assert log(tmp_path) == ["b 1", "a 1", "b 1", "a 1"]


# Notes when each repetition begins and ends; dies at the end of its first, or after some seconds, if its task says so.
TURN_WORKER = """
import json, os, sys, threading, time
from benchmarks import worker
task = json.loads(sys.argv[1])
if "leaves_after" in task:
    threading.Timer(task["leaves_after"], os._exit, [3]).start()

def note(what):
    with open(task["log"], "a") as log:
        log.write(task["side"] + " " + what + "\\n")

def work():
    note("begins")
    time.sleep(task["seconds"])
    note("ends")
    if task.get("dies"):
        raise SystemExit("out of breath")

seconds = worker.repeat(work, warm_up=task["warm_up"], repetitions=task["repetitions"])
worker.report({"work": seconds}, packages=())
"""


@pytest.fixture
def turn_taker(tmp_path, monkeypatch):
    (tmp_path / "turn_worker.py").write_text(TURN_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def side(name, seconds=0.02, warm_up=1, **task):
        common = {"side": name, "log": str(tmp_path / "log.txt"), "seconds": seconds, "warm_up": warm_up}
        return Side(name, "turn_worker", common | task)

    return side


def test_processes_take_turns(turn_taker, tmp_path):
    entry = measure(row(turn_taker("a"), turn_taker("b", 0.06), in_turns=True), pairs=2)
    one_after_the_other = ["a begins", "a ends", "b begins", "b ends"]
    assert log(tmp_path) == one_after_the_other * (1 + 3) * 2  # a warm-up and three repetitions, in two pairs
    ratio = entry["measurements"]["work"]["ratio"]
    assert len(ratio["pairs"]) == 6
    assert 0.2 < ratio["median"] < 0.8
    assert "2 pairs, 6 turns [1]" in results.render({"step/net/turns": entry})


def test_a_process_that_dies_before_its_turn_is_one_line_and_the_other_does_not_begin(turn_taker, tmp_path):
    with pytest.raises(runner.WorkerError, match=r"^a: turn_worker failed: out of breath$"):
        measure(row(turn_taker("a", dies=True), turn_taker("b"), in_turns=True))
    assert log(tmp_path) == ["a begins", "a ends"]


def test_a_process_that_dies_in_its_turn_is_one_line(turn_taker):
    for dying in (0, 1):
        sides = [turn_taker(name, warm_up=0, dies=place == dying) for place, name in enumerate("ab")]
        with pytest.raises(runner.WorkerError, match=rf"^{'ab'[dying]}: turn_worker failed: out of breath$"):
            measure(row(*sides, in_turns=True))


def test_a_process_that_dies_while_it_waits_for_its_turn_is_one_line(turn_taker):
    sides = turn_taker("a", 0.6, warm_up=0), turn_taker("b", warm_up=0, leaves_after=0.3)
    with pytest.raises(runner.WorkerError, match=r"^b: turn_worker failed: ended with code 3$"):
        measure(row(*sides, in_turns=True))


def test_a_process_that_takes_too_long_is_ended(turn_taker, tmp_path):
    folders = {"folder": tmp_path, "pair_folder": tmp_path}
    with pytest.raises(runner.WorkerError, match="^a: turn_worker took longer than 1 s$"):
        runner.run_worker(turn_taker("a", 60), {"ours": sys.executable}, timeout=1, **folders)


def test_a_row_without_a_peer_has_times_and_no_ratio(fake):
    entry = measure(row(fake("a", [[2.0], [4.0]], result={"memory": 5}), None, goal=6.0))
    assert entry["measurements"]["work"] == {"ours": {"median": 3.0, "min": 2.0, "max": 4.0}}
    assert entry["memory"] == {"ours": 5}
    assert "| 6 s |" in results.render({"step/net/none": entry})


def test_useful_work_is_stated_over_the_limit_of_the_same_pair():
    def run(seconds, **facts):
        counts = {"step": 10**10}
        return {"seconds": {"step": seconds}, "memory": 0, "multiply_adds": counts, "facts": facts, "versions": {}}

    side = Side("a", "fake_worker", {})
    entry = runner.compare(
        row(side, side),
        {
            "ours": [run([2.0]), run([4.0])],
            "peer": [run([4.0]), run([4.0])],
            "ceiling": [run([1.0], gflop_per_second=20.0), run([1.0], gflop_per_second=5.0)],
        },
    )
    measurement = entry["measurements"]["step"]
    assert measurement["gflop"] == 20.0  # two operations a multiply-add
    assert measurement["gflop_per_second"] == {"ours": pytest.approx(20 / 3), "peer": 5.0}
    assert measurement["share"] == {"median": 0.75, "min": 0.5, "max": 1.0}  # 10 of 20, 5 of 5
    assert entry["ceiling"]["gflop_per_second"] == {"median": 12.5, "min": 5.0, "max": 20.0}


def test_sides_that_do_different_work_are_refused(fake):
    ours, peer = fake("a", result={"facts": {"parameters": 7}}), fake("b", result={"facts": {"parameters": 8}})
    with pytest.raises(runner.WorkerError, match="parameters is 7 in a and 8 in b"):
        measure(row(ours, peer))
    with pytest.raises(runner.WorkerError, match="different things: .*work.* and .*labour"):
        measure(row(fake("a"), fake("b", result={"seconds": {"labour": [1.0]}})))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"fails": 3}, "ended with code 3"),
        ({"signal": 9}, "was ended by signal 9"),
        ({"silent": True}, "printed no result"),
    ],
)
def test_what_went_wrong_with_a_worker_is_said(task, message, fake):
    with pytest.raises(runner.WorkerError, match=f"^a: fake_worker .*{message}"):
        measure(row(fake("a", **task), None))


@pytest.fixture
def rows(fake, monkeypatch):
    """Three rows for the command, of which the second fails."""
    made = [
        row(fake("a"), fake("b"), key="step/one/b"),
        row(fake("a"), fake("c", fails="no such network"), key="step/two/c"),
        row(fake("a"), fake("d"), key="infer/three/d"),
    ]
    monkeypatch.setattr(command, "all_rows", lambda: made)
    return made


def test_a_failing_worker_is_one_line_and_the_other_rows_are_kept(rows, tmp_path, capsys):
    output = tmp_path / "results"
    results.update(output, "step/two/c", measure(dataclasses.replace(rows[0], work="measured before")))
    assert command.main(["--pairs", "2", "--output", str(output)]) == 1
    failures = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert failures == ["benchmarks: step/two/c failed: c: fake_worker failed: no such network"]
    entries = results.read(output)
    assert {results.row_key(name) for name in entries} == {"step/one/b", "step/two/c", "infer/three/d"}
    (kept,) = [entry for name, entry in entries.items() if results.row_key(name) == "step/two/c"]
    assert kept["work"] == "measured before"


def test_measuring_a_row_again_replaces_it_alone(rows, tmp_path):
    output = tmp_path / "results"
    assert command.main(["step/one/*", "infer", "--output", str(output)]) == 0
    first = results.read(output)
    rows[0] = row(dataclasses.replace(rows[0].ours, name="new"), rows[0].peer, key="step/one/b", work="new work")
    assert command.main(["step/one/b", "--output", str(output)]) == 0
    second = results.read(output)
    kind = machine.kind(machine.instruction_sets())
    one, three = f"step/one/b [{kind}]", f"infer/three/d [{kind}]"
    assert set(second) == set(first) == {one, three}
    assert second[three] == first[three]
    assert (first[one]["work"], second[one]["work"]) == ("some work", "new work")
    table = (output / results.TABLE_FILE).read_text()
    assert table == results.render(second)
    assert "- `one`: new work" in table
    assert "- `three`: some work" in table
    lines = [line.split(" | ") for line in table.splitlines() if "**1**" in line]
    assert [(line[0], line[2], line[3]) for line in lines] == [("| **1**", "`one`", "b"), ("| **1**", "`three`", "d")]


def test_a_row_is_kept_for_each_kind_of_machine(rows, tmp_path):
    """And one that was measured before kinds were recorded goes when its machine measures it again."""
    entry = measure(dataclasses.replace(rows[0], claims=("AMX",), goal=0.75))
    assert set(entry["instruction_sets"]) <= set(machine.describe_flags().split())
    old = {name: value for name, value in entry.items() if name not in ("kind", "instruction_sets", "amx", "bfloat16")}
    elsewhere = old | {"machine": "another machine"}
    results.write(tmp_path, {"step/one/b": old, "step/two/c": elsewhere})
    for kind, date in (("AMX", "2001-01-01"), ("AVX2", "2001-01-02"), ("AVX2", "2001-01-03")):
        results.update(tmp_path, "step/one/b", entry | {"kind": kind, "date": date})
    entries = results.read(tmp_path)
    assert set(entries) == {"step/one/b [AMX]", "step/one/b [AVX2]", "step/two/c"}
    assert entries["step/one/b [AVX2]"]["date"] == "2001-01-03"
    table = (tmp_path / results.TABLE_FILE).read_text()
    goals = [line.split(" | ")[1] for line in table.splitlines() if "`one` |" in line]
    assert goals == ["0.75", "(0.75 on AMX)"]  # stated for machines with AMX alone
    headings = [line.partition(":")[0] for line in table.splitlines() if line.startswith("### ")]
    assert headings[:3] == ["### AMX", "### AVX2", "### kind not recorded"]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fpu avx avx2 amx_bf16_of_tomorrow", "AVX2"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2 avx512f avx512_bf16", "AVX-512 with bfloat16"),
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", "AMX"),
    ],
)
def test_the_kind_of_a_machine_is_its_best_instruction_set(flags, kind):
    assert machine.kind(machine.instruction_sets(flags)) == kind


def test_a_quick_run_leaves_the_results_alone(rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "CHECKOUT", tmp_path)  # where the results would go
    assert command.main(["infer", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "- `three`: less work" in out
    assert "| d | 1 s (1–1) |" in out
    assert not (tmp_path / "benchmarks").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stepp"], "stepp does not match a row"),
        (["--peer-python", "jax=python"], "--peer-python jax=python is not PEER=PYTHON"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_peer_that_is_not_installed_leaves_its_rows_out(tmp_path, capsys):
    missing = tmp_path / "python"
    assert command.main(["step/guide/torch", "--peer-python", f"torch={missing}"]) == 0
    error = capsys.readouterr().err
    assert f"step/guide/torch is left out: there is no {missing}" in error
    assert error.count("\n") == 1


def test_rows_have_keys_of_their_suites():
    keys = [row.key for row in all_rows()]
    assert len(set(keys)) == len(keys)
    assert {key.split("/")[0] for key in keys} == set(SUITES)
    assert all(key.count("/") == 2 for key in keys)


def test_work_that_leaves_nothing_behind_takes_turns():
    """Pipelines fill their buffers between turns, and a start cannot be repeated."""
    assert {row.key.split("/")[0] for row in all_rows() if row.in_turns} == {"step", "infer", "export"}


def test_our_processes_start_as_the_command_does():
    assert {malloc.VARIABLE: malloc.TUNABLES} == OUR_ENVIRONMENT


def test_the_parent_imports_no_framework():
    program = "import benchmarks.__main__, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=runner.CHECKOUT, capture_output=True, check=True)
    assert not {"jax", "numpy", "deeplab_jax"} & set(json.loads(done.stdout))


@pytest.mark.slow
def test_a_real_row_at_its_smallest(tmp_path):
    assert command.main(["metric", "--quick", "--repetitions", "1", "--output", str(tmp_path)]) == 0
    ((name, entry),) = results.read(tmp_path).items()
    (measurement,) = entry["measurements"].values()
    assert 0 < measurement["ratio"]["median"] < 1  # counting pixels is cheaper than the network
    assert "jax" in entry["versions"]["ours"]
    assert (tmp_path / results.TABLE_FILE).read_text() == results.render({name: entry})
