"""Entry point of `deeplab-jax` and `python -m deeplab_jax`: how the process starts and ends."""

import atexit
import sys

from deeplab_jax.cli import malloc


def main() -> None:
    """Runs the command."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names may have letters it cannot show
    if sys.argv[1:2] and sys.argv[1] in malloc.COMMANDS:
        malloc.restart_tuned()  # before the slow imports
    codes: list[int] = []
    atexit.register(_skip_teardown, codes)  # registered first, so it is called last
    from deeplab_jax.cli import main

    try:
        main.main()
    except SystemExit as ended:
        codes.append(ended.code)
        raise


def _skip_teardown(codes: list[int]) -> None:
    """Ends the process at once: the interpreter would take a second to free objects, programs and arrays."""
    if codes:
        from deeplab_jax.cli.exits import exit_at_once

        exit_at_once(codes[0])


if __name__ == "__main__":
    main()
