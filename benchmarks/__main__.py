"""The command: selects rows, runs them, prints and stores the results."""

import argparse
import fnmatch
import os
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import results, runner
from benchmarks.rows import SUITES, Row, all_rows

_PEERS = {
    "keras": "keras-cv",
    "torch": "segmentation-models-pytorch",
    "litert": "ai-edge-litert",
    "onnx": "onnxruntime",
}
_DEFAULT = pathlib.Path("benchmarks") / ".venv-peers" / "bin" / "python"
_EPILOG = f"""rows:
  NAME is a suite ({", ".join(SUITES)}), a row or a pattern of rows, such as step/guide/*; default: all.

environments:
  Ours is the Python that runs the command. A peer's is, in this order, --peer-python, the variable
  DEEPLAB_JAX_BENCHMARK_KERAS, _TORCH, _LITERT or _ONNX, and {_DEFAULT}, made by
    python -m venv benchmarks/.venv-peers
    benchmarks/.venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the selected rows. Returns 1 if a row failed, 2 for a wrong command line."""
    args = _parser().parse_args(argv)
    rows = [row for row in all_rows() if _chosen(row.key, args.names)]
    for name in args.names:
        if not any(_chosen(row.key, [name]) for row in all_rows()):
            return _say(f"{name} does not match a row; `python -m benchmarks --list` lists them", 2)
    if args.list:
        for row in rows:
            print(f"{row.key:36} {row.work}; {row.peer.name if row.peer else 'no peer'}")
        return 0
    try:
        pythons = {"ours": sys.executable} | _peer_pythons(args.peer_python)
    except ValueError as error:
        return _say(str(error), 2)
    output = args.output or (None if args.quick else runner.CHECKOUT / "benchmarks")
    options = {"tflite": str(args.tflite.resolve())} if args.tflite else {}
    failed = 0
    for row in rows:
        missing = _missing(row, pythons, options)
        if missing:
            _say(f"{row.key} is left out: {missing}")
            continue
        try:
            entry = runner.measure_row(
                row,
                pythons,
                pairs=1 if args.quick and args.pairs is None else args.pairs or 3,
                repetitions=args.repetitions or (2 if args.quick else None),
                quick=args.quick,
                options=options,
                say=_say,
            )
        except runner.WorkerError as error:
            failed += 1
            _say(f"{row.key} failed: {error}")
            continue
        print(results.render({row.key: entry}).partition("\n## ")[2], flush=True)
        if output is not None:
            results.update(output, row.key, entry)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and memory against what a user would pick instead.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="suites and rows, see below")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument("--pairs", type=_positive, help="how often both sides run (default: 3; 1 with --quick)")
    parser.add_argument(
        "--repetitions", type=_positive, help="repetitions per process after the warm-up (default: the row's)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small images and few repetitions, to check that everything works"
    )
    parser.add_argument(
        "--peer-python",
        nargs="+",
        default=[],
        metavar="PEER=PYTHON",
        help=f"interpreters of the peers {', '.join(_PEERS)}, see below",
    )
    parser.add_argument("--tflite", type=pathlib.Path, help="deeplabv3_257_mv_gpu.tflite, for the LiteRT row")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help=f"folder for {results.JSON_FILE} and {results.TABLE_FILE} (default: benchmarks; none with --quick)",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _chosen(key: str, names: Sequence[str]) -> bool:
    return not names or any(key.split("/")[0] == name or fnmatch.fnmatch(key, name) for name in names)


def _peer_pythons(given: Sequence[str]) -> dict[str, str]:
    pythons = {}
    for peer in _PEERS:
        default = runner.CHECKOUT / _DEFAULT
        pythons[peer] = os.environ.get(f"DEEPLAB_JAX_BENCHMARK_{peer.upper()}") or str(default)
    for item in given:
        peer, _, python = item.partition("=")
        if peer not in _PEERS or not python:
            raise ValueError(f"--peer-python {item} is not PEER=PYTHON with a peer of {', '.join(_PEERS)}")
        pythons[peer] = python
    return pythons


def _missing(row: Row, pythons: dict[str, str], options: dict[str, str]) -> str | None:
    if row.peer and not pathlib.Path(pythons[row.peer.python]).exists():
        peer = row.peer.python
        return f"there is no {pythons[peer]} with {_PEERS[peer]}; give --peer-python {peer}=PYTHON"
    if "litert" in row.key and "tflite" not in options:
        return "give the network with --tflite FILE"
    return None


def _say(text: str, code: int = 0) -> int:
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
