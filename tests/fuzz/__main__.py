"""`python -m tests.fuzz --inputs 10000`: exit code 1 if a reader fails."""

import argparse
import sys

from tests.fuzz import campaign

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read damaged files with every reader.")
parser.add_argument("--inputs", type=int, default=10_000, help="number of damaged files (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="chooses them (default: %(default)s)")
parser.add_argument("--readers", nargs="*", default=(), help="readers to try (default: all)")
parser.add_argument("--repeat", nargs=2, type=int, metavar=("TARGET", "SEED"), help="repeat one input of a failure")
args = parser.parse_args()
only = tuple(args.repeat) if args.repeat else None
report = campaign.run(1 if only else args.inputs, seed=args.seed, readers=args.readers, only=only)
for failure in report.failures:
    print(f"--repeat {failure.target} {failure.seed} ({failure.reader}): {failure.outcome}\n{failure.message}")
for line in campaign.lines(report):
    print(line)
sys.exit(bool(report.failures))
