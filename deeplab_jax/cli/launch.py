"""Runs of several processes: their arguments, and how this process becomes one of them."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments, exits, logging_setup
from deeplab_jax.errors import UsageError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a run of several processes."""
    group = parser.add_argument_group("distributed runs", "one or more processes per machine, see docs/reliability.md")
    group.add_argument(
        "--cluster", action="store_true", help="detect the other processes from a TPU pod, SLURM or Open MPI"
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0; requires --num-processes and --process-id"
    )
    group.add_argument("--num-processes", type=arguments.count, metavar="N", help="number of processes in the run")
    group.add_argument("--process-id", type=arguments.index, metavar="I", help="number of this process, starting at 0")
    group.add_argument(
        "--local-processes", type=arguments.count, metavar="N", help="start a run of N processes on this machine"
    )


def join_processes(args: argparse.Namespace, config: "ConfigDict", *, resume: str | None = None) -> None:
    """Makes this process one of several if the command line asks for it. Call this before a device is used.

    The process that the user started becomes the parent of the one that does the work, or of all `--local-processes`.
    It does not return: it exits when they have ended.

    Args:
      args: the arguments of `add_arguments`.
      config: how long to wait for other processes.
      resume: how to continue after a process was killed (default: as a training does).

    Raises:
      UsageError: the arguments contradict each other.
    """
    explicit = [args.coordinator, args.num_processes, args.process_id]
    if None in explicit and explicit != [None] * 3:
        raise UsageError("--coordinator, --num-processes and --process-id must be given together")
    if args.process_id is not None and args.process_id >= args.num_processes:
        raise UsageError(f"--process-id {args.process_id} must be below --num-processes {args.num_processes}")
    if exits.SUPERVISED in os.environ:
        from deeplab_jax.parallel import processes

        processes.start(
            args.coordinator,
            args.num_processes,
            args.process_id,
            heartbeat_seconds=config.distributed.heartbeat_seconds,
            connect_seconds=config.distributed.connect_seconds,
        )
        if not processes.is_leader():
            logging_setup.silence()
        return
    ways = (args.coordinator is not None) + args.cluster + (args.local_processes is not None)
    if ways > 1:
        raise UsageError("--coordinator, --cluster and --local-processes are alternatives; give only one")
    if ways == 1:
        from deeplab_jax.parallel import launcher

        command = [sys.executable, "-m", "deeplab_jax", *args.argv]
        launches = [[]] if args.local_processes is None else launcher.local_launches(args.local_processes)
        commands = [[*command, *launch] for launch in launches]
        code, line = launcher.run(commands, {exits.SUPERVISED: "1"}, resume=resume or launcher.RESUME)
        if line is not None:
            exits.fail(line, code)
        sys.exit(code)
