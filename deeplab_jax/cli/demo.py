"""`deeplab-jax demo`."""

import argparse

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--preset",
        nargs="+",
        default=[],
        type=arguments.network,
        metavar="NAME|FOLDER",
        help="put these networks, also hf://owner/name, first in the menu; presets already on this disk are always "
        "offered",
    )
    parser.add_argument("--workdir", type=arguments.path, help="also offer the network of this training run")
    arguments.add_runtime(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind (default: %(default)s, for this machine only)"
    )
    parser.add_argument("--port", type=arguments.port, default=7860, help="default: %(default)s; 0 picks a free port")
    parser.add_argument(
        "--max-megabytes",
        type=arguments.count,
        default=32,
        metavar="N",
        help="reject larger uploads (default: %(default)s)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=arguments.count,
        default=25,
        metavar="N",
        help="reject larger images (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.demo import page

    compilation_cache.enable()
    page.serve(
        args.preset,
        args.workdir,
        host=args.host,
        port=args.port,
        max_bytes=args.max_megabytes * 2**20,
        max_pixels=args.max_megapixels * 10**6,
        runtime=args.runtime,
    )


COMMAND = Command(
    name="demo",
    summary="Serve a web page on this machine to try networks on your images.",
    add_arguments=add_arguments,
    run=run,
    examples=("demo", "demo --workdir runs/photos --port 8000"),
    lists=("presets",),
)
