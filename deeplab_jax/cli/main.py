"""The `deeplab-jax` command: parses the command line, runs the command, and turns errors into exit codes."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence

from deeplab_jax.cli import (
    aot,
    arguments,
    configs,
    convert,
    data,
    demo,
    evaluate,
    exits,
    export,
    failures,
    latency,
    papers,
    parser,
    predict,
    presets,
    push,
    runs,
    summary,
    sweep,
    train,
)
from deeplab_jax.cli.command import Command
from deeplab_jax.cli.logging_setup import CommandLogging
from deeplab_jax.errors import Preempted, UsageError, UserError

#: All commands, in the order of `deeplab-jax --help`.
COMMANDS: tuple[Command, ...] = (
    train.COMMAND,
    sweep.COMMAND,
    evaluate.COMMAND,
    predict.COMMAND,
    *data.COMMANDS,
    runs.COMMAND,
    configs.COMMAND,
    *papers.COMMANDS,
    presets.COMMAND,
    convert.COMMAND,
    push.COMMAND,
    export.COMMAND,
    demo.COMMAND,
    summary.COMMAND,
    aot.COMMAND,
    latency.COMMAND,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits.

    Exit codes: 0 on success; 1 for a user's mistake, for an unexpected error, or if a process of a distributed run
    died; 2 for an invalid command line; 75 if SIGTERM stopped the command after it saved what it had done; 130 for
    Ctrl-C; 129 for a closed terminal.

    Args:
      argv: the command line without the program's name (default: this process's).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = None
    with CommandLogging() as log:
        try:
            command, args = parser.parse(argv, COMMANDS)
            log.configure(quiet=args.quiet, log_file=args.log_file)
            run_command(command, args)
        except (UserError, UsageError) as error:
            exits.fail(error, error.EXIT_CODE)
        except Preempted as stopped:
            exits.report(f"{stopped}; {stopped.resume}")
            sys.exit(stopped.exit_code)
        except KeyboardInterrupt:
            trains = argv[:1] in (["train"], ["sweep"]) or argv[:2] == ["papers", "run"]
            resume = "; run the same command again to resume from the newest checkpoint" if trains else ""
            exits.fail(f"interrupted{resume}", 130)
        except Exception as error:
            if exits.SUPERVISED in os.environ:
                time.sleep(2)  # another process may have died: then the parent reports that one and ends this one
            if arguments.DEBUG in argv:
                traceback.print_exc()
            failures.report(error, command, argv)
            exits.leave(1)
    sys.exit(0)


def run_command(command: Command, args: argparse.Namespace) -> None:
    """Runs one command. Tests replace this function."""
    command.run(args)
