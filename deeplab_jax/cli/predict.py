"""`deeplab-jax predict`."""

import argparse
import collections
import contextlib
import logging
import pathlib
from typing import TYPE_CHECKING

from deeplab_jax.cli import arguments, exits, launch
from deeplab_jax.cli.command import Command
from deeplab_jax.cli.names import CODECS, SUBMISSIONS, UPSAMPLE, VIDEO_SUFFIXES
from deeplab_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from deeplab_jax.inference.files import Existing, FilesReport, ResultPaths, Writer
    from deeplab_jax.inference.predictor import Predictor

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "inputs", nargs="*", type=arguments.path, metavar="IMAGE|FOLDER|VIDEO", help="images, folders of images, videos"
    )
    arguments.add_network(parser, required=False)
    arguments.add_checkpoint(parser)
    parser.add_argument("--output", type=arguments.path, required=True, help="folder for the results")
    parser.add_argument(
        "--size", type=arguments.size, metavar="HxW", help="network input size (default: the network's own)"
    )
    parser.add_argument(
        "--scales",
        type=arguments.scales,
        metavar="S,...",
        help="average the probabilities at these scales, for example 0.75,1,1.25",
    )
    parser.add_argument("--flip", action="store_true", help="average with the horizontally flipped image")
    parser.add_argument(
        "--window", type=arguments.size, metavar="HxW", help="slide a window of this size over large images"
    )
    parser.add_argument(
        "--classes",
        type=lambda text: text.split(","),
        metavar="NAME,...",
        help="predict only these classes (default: all)",
    )
    parser.add_argument(
        "--upsample",
        choices=UPSAMPLE,
        default=UPSAMPLE[0],
        help="resize logits to the image, or labels, which is faster and less accurate (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=arguments.count,
        metavar="N",
        help="images that each device computes together (default: 1 on CPUs, up to 16 on accelerators)",
    )
    arguments.add_runtime(parser)
    parser.add_argument(
        "--submission",
        choices=SUBMISSIONS,
        help="instead of masks and overlays, write the files that this benchmark's server scores",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--skip-existing", action="store_true", help="leave out inputs whose results exist")
    existing.add_argument("--overwrite", action="store_true", help="replace results that exist")
    arguments.add_value_range(parser)
    arguments.add_max_megapixels(parser)
    video = parser.add_argument_group("videos", "each gets a video with its classes in color over the frames")
    video.add_argument("--camera", type=arguments.index, metavar="INDEX", help="read frames from a camera until Ctrl-C")
    video.add_argument(
        "--smooth",
        type=arguments.fraction,
        metavar="ALPHA",
        help="weight of the current frame in a moving average of logits (default: 1, no smoothing)",
    )
    video.add_argument(
        "--codec",
        choices=CODECS,
        default=CODECS[0],
        help="mpeg4 is fast and for players, vp9 is slow and for browsers (default: %(default)s)",
    )
    launch.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Predicts masks and overlays."""
    videos = [path for path in args.inputs if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()]
    images = [path for path in args.inputs if path not in videos]
    sources = videos + ([] if args.camera is None else [args.camera])
    if not images and not sources:
        raise UsageError("no input: give images, folders, videos or --camera; see `deeplab-jax predict --help`")
    if args.smooth is not None and not sources:
        raise UsageError("--smooth applies to videos, but no video or camera is given")
    if args.submission is not None and sources:
        raise UsageError("--submission takes images, but a video or camera is given")
    from deeplab_jax.cli import compilation_cache
    from deeplab_jax.cli.config_flags import parse_config
    from deeplab_jax.config import base_config

    compilation_cache.enable()
    config = parse_config(args.config_arguments, base=base_config())
    launch.join_processes(args, config, resume=_how_to_resume(args))
    from deeplab_jax.files import create_folder
    from deeplab_jax.inference import files
    from deeplab_jax.parallel import processes

    existing = "skip" if args.skip_existing else "overwrite" if args.overwrite else "refuse"
    if args.submission is not None:
        _predict_submission(args, images, existing)
        return
    paths = files.result_paths(images, args.output, existing=existing)
    targets = _video_paths(sources, args.output, existing)
    processes.check_same_files([*paths, *targets])
    if not paths and not targets:
        logger.info("Nothing to do: all results exist in %s", args.output)
        return
    predictor = _load_predictor(args)
    create_folder(args.output, "--output")
    failed = {}
    if paths:
        report = _predict_images(predictor, paths, args)
        failed |= report.failed
        if report.written:
            logger.info("Wrote %d masks and overlays to %s", len(report.written) // 2, args.output)
    own = {}
    for source in processes.share(list(targets)):
        try:
            _predict_video(predictor, source, targets[source], args)
        except UserError as error:
            own[str(source)] = str(error)
            if len(targets) > 1 or paths:
                logger.warning("%s", error)
    failed |= {source: reason for part in processes.gather(own) for source, reason in part.items()}
    if failed:
        raise UserError(files.describe_failures(failed, len(paths) + len(targets)))


def _predict_submission(args: argparse.Namespace, images: list[pathlib.Path], existing: "Existing") -> None:
    from deeplab_jax.inference import files
    from deeplab_jax.inference.submission import SUBMISSIONS as FORMATS
    from deeplab_jax.parallel import processes

    submission = FORMATS[args.submission]
    paths = submission.paths(images, args.output, existing=existing)
    processes.check_same_files(list(paths))
    if not paths:
        logger.info("Nothing to do: all results exist in %s", args.output)
        return
    predictor = _load_predictor(args)
    submission.check_classes(predictor.label_set)
    report = _predict_images(predictor, paths, args, write=submission.write)
    if report.failed:
        raise UserError(files.describe_failures(report.failed, len(paths)))
    logger.info(
        "Wrote %d files for %s to %s; pack the contents of this folder", len(report.written), submission.benchmark,
        args.output,
    )  # fmt: skip


def _predict_images(
    predictor: "Predictor", paths: "ResultPaths", args: argparse.Namespace, write: "Writer | None" = None
) -> "FilesReport":
    """Predicts this process's share of the images; returns the reports of all processes in one.

    Raises:
      Preempted: a signal stopped a process, after the images it had read.
    """
    from deeplab_jax.inference import files
    from deeplab_jax.parallel import processes

    rest = _how_to_resume(args)
    own = {path: paths[path] for path in processes.share(list(paths))}
    options = {"finishing": "finishing the images that have been read", "agrees": False}
    with exits.notice_signals(f"; {rest}", **options) as preemption:
        report = files.predict_paths(
            predictor,
            own,
            max_pixels=arguments.max_pixels(args),
            value_range=args.value_range,
            write=write,
            preemption=preemption,
        )
        report = files.merge_reports(processes.gather(report.to_json()))
    if report.num_left:
        done = len(paths) - report.num_left
        raise preemption.stopped(f"after {done} of {len(paths)} images, whose results are written", resume=rest)
    return report


def _how_to_resume(args: argparse.Namespace) -> str:
    if args.skip_existing:
        return "run the same command again to predict the rest"
    return f"add --skip-existing to the command{' in place of --overwrite' if args.overwrite else ''} to continue"


def _video_paths(
    sources: list[pathlib.Path | int], output: pathlib.Path, existing: "Existing"
) -> dict[pathlib.Path | int, pathlib.Path]:
    """The file to write for each video and camera, without those to skip."""
    from deeplab_jax.inference import files, video

    paths = {source: video.overlay_path(source, output) for source in sources}
    counts = collections.Counter(paths.values())
    twice = [source for source, path in paths.items() if counts[path] > 1]
    if twice:
        raise UserError(
            f"videos {twice[0]} and {twice[1]} have the same name; predict them with different --output folders"
        )
    if existing == "refuse":
        files.refuse_existing(paths.values())
    return {source: path for source, path in paths.items() if not (existing == "skip" and path.exists())}


def _load_predictor(args: argparse.Namespace) -> "Predictor":
    from deeplab_jax import pretrained
    from deeplab_jax.cli.config_flags import parse_config
    from deeplab_jax.inference.predictor import Predictor
    from deeplab_jax.workdir import layout

    arguments.split_workdir(args)
    network = None
    if args.workdir is not None:
        base = layout.read_config(args.workdir)
    else:
        network = pretrained.load(args.preset or pretrained.DEFAULT_PRESET, checkpoint=args.checkpoint)
        base = pretrained.preset_config(network)
    config = parse_config(args.config_arguments, base=base)
    return Predictor.from_network(
        network or pretrained.load(args.workdir, checkpoint=args.checkpoint),
        config,
        size=args.size,
        window=args.window,
        classes=args.classes,
        flip=args.flip or config.eval.flip,
        scales=args.scales or tuple(config.eval.scales),
        upsample=args.upsample,
        batch_size=args.batch_size,
        runtime=args.runtime,
    )


def _predict_video(
    predictor: "Predictor", source: pathlib.Path | int, target: pathlib.Path, args: argparse.Namespace
) -> None:
    from deeplab_jax.inference import video
    from deeplab_jax.storage.local_copies import local_input, local_output

    label = predictor.start_video(smoothing=1.0 if args.smooth is None else args.smooth)
    with contextlib.ExitStack() as stack:  # of copies, where a file is in a bucket
        frames = source if isinstance(source, int) else stack.enter_context(local_input(source))
        file = stack.enter_context(local_output(target))
        report = video.label_video(label, frames, file, predictor.label_set, codec=args.codec)
    stages = ", ".join(f"{stage} {value:.1f} ms" for stage, value in report.milliseconds.items())
    logger.info(
        "Wrote %d frames to %s at %.1f frames per second (%s)",
        report.frames, target, report.frames_per_second, stages,
    )  # fmt: skip
    if report.interrupted and source != args.camera:
        exits.fail(f"interrupted; {target} ends there", 130)


COMMAND = Command(
    name="predict",
    summary="Predict masks for images and videos.",
    add_arguments=add_arguments,
    run=run,
    when_out_of_memory="use a smaller --size or smaller --scales, or slide a window over the image: --window 513x513",
    examples=(
        "predict photo.jpg holiday/ --output masks",
        "predict street.mp4 --workdir runs/photos --output videos",
    ),
    takes_config=True,
    lists=("presets",),
)
