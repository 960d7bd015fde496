"""`deeplab-jax push`."""

import argparse
import logging

from deeplab_jax.cli import arguments
from deeplab_jax.cli.command import Command

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "source",
        type=arguments.network,
        metavar="SOURCE",
        help="folder that `deeplab-jax convert` or save_pretrained wrote, workdir of a training run, or preset",
    )
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hugging Face Hub")
    parser.add_argument(
        "--private", action="store_true", help="create a repository that only its owner can see (default: public)"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: the main branch)")
    arguments.add_provenance(parser)
    parser.add_argument(
        "--half", action="store_true", help="store kernels as float16: half the size, loaded as float32"
    )
    parser.add_argument("--message", metavar="TEXT", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be uploaded; needs no network")


def run(args: argparse.Namespace) -> None:
    """Shows what is uploaded, and uploads it."""
    from deeplab_jax.pretrained import hub, sharing

    if not args.dry_run:
        hub.import_hub()  # before minutes of work
    with sharing.prepare_upload(
        args.source, args.repo_id, license=args.license, author=args.author, half=args.half
    ) as upload:
        for name, path in upload.files.items():
            logger.info("%s: %.1f kB", name, path.stat().st_size / 1e3)
        facts = upload.provenance.to_json()
        for name in ("license", "author", "data", "date", "base"):
            if name in facts:
                logger.info("%s: %s", name, ", ".join(facts[name]) if name == "data" else facts[name])
        for score in upload.provenance.scores:
            logger.info("score: %s %.4f, %s, %s", score.metric, score.value, score.place, score.protocol)
        for note in upload.notes:
            logger.warning("%s", note)
        if args.dry_run:
            logger.info("Nothing was uploaded to %s (--dry-run)", args.repo_id)
            return
        address = sharing.send(upload, private=args.private, revision=args.revision, message=args.message)
    logger.info("Pushed to %s; load it with `--preset %s%s`", address, hub.PREFIX, args.repo_id)


COMMAND = Command(
    name="push",
    summary="Publish a network with its model card on the Hugging Face Hub.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="close other programs, or use a machine with more memory",
    examples=(
        "push runs/photos ada/field-segmentation --license Apache-2.0 --dry-run",
        "push networks/photos ada/field-segmentation --private --half",
    ),
    note="Needs `pip install 'deeplab_jax[hub]'`, and `hf auth login` or HF_TOKEN. HF_ENDPOINT names another server.",
)
