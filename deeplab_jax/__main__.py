"""The command `deeplab-jax`, also as `python -m deeplab_jax`: how its process begins and ends."""

import atexit

from deeplab_jax.cli.host_memory import keep_memory


def main() -> None:
    """Runs the command in a process that keeps its memory, if that helps."""
    keep_memory()  # before anything slow is imported: it may start the process over
    codes: list[int] = []
    atexit.register(_leave, codes)
    from deeplab_jax.cli import main

    try:
        main.main()
    except SystemExit as ended:
        codes.append(ended.code)
        raise


def _leave(codes: list[int]) -> None:
    """Leaves to the system what the interpreter would take a second to free: objects, programs, arrays.

    The first to be registered is the last to be called: whatever else ends with the process has ended.
    """
    if codes:
        from deeplab_jax.cli.main import exit_at_once

        exit_at_once(codes[0])


if __name__ == "__main__":
    main()
