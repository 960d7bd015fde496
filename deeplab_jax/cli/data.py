"""`deeplab-jax data prepare`, `data check`, `data show`, `data import` and `data export`."""

import argparse
import dataclasses
import logging
import os
import shlex
from typing import TYPE_CHECKING, Any

from deeplab_jax.cli import arguments, names
from deeplab_jax.cli.command import Command
from deeplab_jax.errors import UserError

if TYPE_CHECKING:
    from deeplab_jax.data.check import Report

logger = logging.getLogger(__name__)


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data prepare`."""
    parser.add_argument("name", metavar="NAME", help="data set, see below; `folder` is for your own images and masks")
    parser.add_argument(
        "--source",
        type=arguments.disk_path,
        help="folder or archive with the raw data (default: download, if it is public)",
    )
    parser.add_argument(
        "--sbd-source",
        type=arguments.disk_path,
        help="SBD folder or archive; adds the split trainaug to voc2012_segmentation",
    )
    parser.add_argument(
        "--val-fraction",
        type=arguments.fraction,
        help="fraction of val, for a folder without split lists (default: 0.2)",
    )
    _add_raw(parser)
    arguments.add_data_dir(parser)


def _add_raw(parser: argparse.ArgumentParser) -> None:
    """Adds what `data prepare` and `data check` need to read raw data."""
    parser.add_argument(
        "--workers",
        type=arguments.count,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        metavar="N",
        help="number of processes that read images and masks (default: all cores)",
    )
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        default=None,
        help="id 0 of the masks of `folder` is unlabeled and ignored, and the first class is id 1, as in ADE20K",
    )
    parser.add_argument(
        "--ignore-ids",
        type=arguments.ids,
        metavar="ID,ID,...",
        help="ids of the masks of `folder` that are unlabeled and ignored; 255 always is",
    )
    parser.add_argument(
        "--channels",
        type=arguments.count,
        metavar="N",
        help="keep the N channels of each image and its bit depth, for example 5 for multispectral TIFFs "
        "(default: convert to 8-bit RGB)",
    )
    arguments.add_value_range(parser)
    arguments.add_max_megapixels(parser)
    parser.add_argument(
        "--tile-size",
        type=arguments.size,
        metavar="HxW",
        help="cut larger images into tiles of at most this size; tiled TIFFs are read tile by tile",
    )


def prepare(args: argparse.Namespace) -> None:
    """Prepares a data set."""
    from deeplab_jax.data.prepare import prepare

    prepare(
        args.name,
        source=args.source,
        sbd_source=args.sbd_source,
        data_dir=args.data_dir,
        val_fraction=args.val_fraction,
        value_range=args.value_range,
        channels=args.channels,
        max_pixels=arguments.max_pixels(args),
        tile_size=args.tile_size,
        reduce_zero_label=args.reduce_zero_label,
        ignore_ids=args.ignore_ids,
        workers=args.workers,
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data check`."""
    parser.add_argument("name", metavar="NAME", help="data set, see below")
    parser.add_argument(
        "--source",
        type=arguments.disk_path,
        help="folder or archive with raw data to check instead of the prepared data set",
    )
    _add_raw(parser)
    arguments.add_data_dir(parser)
    arguments.add_json(parser)


def check(args: argparse.Namespace) -> None:
    """Checks a data set, and fails if anything is wrong with it."""
    from deeplab_jax.cli import output
    from deeplab_jax.data.check import check, report_tables

    applicable = ("value_range", "channels", "max_megapixels", "tile_size", "reduce_zero_label", "ignore_ids")
    options = {key: getattr(args, key) for key in applicable}
    for key, value in options.items():
        if value is not None and args.source is None:
            raise UserError(f"--{key.replace('_', '-')} applies to raw data; give its folder with --source")
    del options["max_megapixels"]
    options["max_pixels"] = arguments.max_pixels(args)
    report = check(args.name, data_dir=args.data_dir, source=args.source, workers=args.workers, **options)
    output.show(report_tables(report), _report_values(report), args.json)
    if not report.ok:
        problems = sum(len(split.problems) for split in report.splits.values())
        raise UserError(
            f"{args.name} has {problems} invalid examples and {len(report.leaks)} leaks; fix those listed above"
        )


def _report_values(report: "Report") -> dict[str, Any]:
    splits = {}
    for name, split in report.splits.items():
        values = dataclasses.asdict(split) | {"num_examples": split.num_examples}
        del values["ids"]
        splits[name] = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items()}
    class_names = list(report.label_set.class_names)
    return {
        "name": report.name,
        "class_names": class_names,
        "splits": splits,
        "leaks": report.leaks,
        "notes": list(report.notes),
        "pixels": report.pixels and report.pixels.to_json(),
    }


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data show`."""
    parser.add_argument("name", metavar="NAME", help="data set, see below")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--count",
        type=arguments.count,
        default=12,
        metavar="N",
        help="number of images, spread over the split (default: %(default)s)",
    )
    parser.add_argument("--output", type=arguments.disk_path, required=True, metavar="FILE.png", help="image to write")
    parser.add_argument(
        "--display-channels",
        type=arguments.channel_ids,
        default=(),
        metavar="R,G,B",
        help="channels to draw as red, green and blue, counted from 0 (default: the first three, or the first as gray)",
    )
    arguments.add_data_dir(parser)


def show(args: argparse.Namespace) -> None:
    """Writes a gallery of images and masks."""
    from deeplab_jax import data, visualization

    if args.output.exists():
        raise UserError(f"{args.output} exists; choose another --output or remove it")
    source = data.open_source(args.name, args.split, data_dir=args.data_dir)
    count = min(args.count, len(source))
    positions = [i * len(source) // count for i in range(count)]
    images, labels = zip(*data.decode_examples(source, positions), strict=True)
    value_range = data.pixels_of(source).value_range
    images = [data.to_rgb(image, value_range, args.display_channels) for image in images]
    visualization.plot_segmentation_mask_gallery(images, labels, label_set=source.label_set, path=args.output)
    logger.info("Wrote %s: %d of %d examples of %s/%s", args.output, count, len(source), args.name, args.split)


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data import`."""
    parser.add_argument(
        "source", type=arguments.disk_path, metavar="SOURCE", help="annotation file, folder or zip archive"
    )
    parser.add_argument(
        "--from", dest="format", choices=names.ANNOTATION_FORMATS, required=True, help="format of the annotations"
    )
    parser.add_argument(
        "--images", type=arguments.disk_path, metavar="FOLDER", help="folder of the images, if they are not in SOURCE"
    )
    parser.add_argument(
        "--classes",
        type=arguments.disk_path,
        metavar="FILE",
        help="class list that sets names and ids (default: the order in SOURCE, after background)",
    )
    parser.add_argument(
        "--keep-empty",
        action="store_true",
        help="import images without annotations as background (default: leave them out)",
    )
    parser.add_argument("--output", type=arguments.disk_path, required=True, metavar="FOLDER", help="folder to create")


def import_annotations(args: argparse.Namespace) -> None:
    """Writes annotations as a folder of images and masks."""
    from deeplab_jax.data import annotation_import

    report = annotation_import.import_annotations(
        args.format,
        args.source,
        args.output,
        image_folder=args.images,
        classes=args.classes,
        keep_empty=args.keep_empty,
    )
    for note in annotation_import.describe_import(report):
        logger.warning("%s", note)
    logger.info(
        "Wrote %d images with %d shapes of %d classes to %s; next: deeplab-jax data prepare folder --source %s",
        report.images, report.shapes, report.label_set.num_classes, args.output, shlex.quote(str(args.output)),
    )  # fmt: skip


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `data export`."""
    parser.add_argument("images", type=arguments.disk_path, metavar="IMAGES", help="folder of images")
    parser.add_argument(
        "masks",
        type=arguments.disk_path,
        metavar="MASKS",
        help="folder of their masks, such as the output of `predict`",
    )
    parser.add_argument(
        "--to", dest="format", choices=names.ANNOTATION_EXPORT_FORMATS, required=True, help="format to write"
    )
    parser.add_argument(
        "--classes", type=arguments.disk_path, required=True, metavar="FILE", help="classes.txt of the masks"
    )
    parser.add_argument(
        "--tolerance",
        type=arguments.tolerance,
        default=1.0,
        metavar="PIXELS",
        help="largest distance between a region and its polygon; 0 keeps every corner (default: %(default)s)",
    )
    parser.add_argument("--output", type=arguments.disk_path, required=True, metavar="FOLDER", help="folder to write")


def export_annotations(args: argparse.Namespace) -> None:
    """Writes masks as annotations."""
    from deeplab_jax.data import annotation_export

    count = annotation_export.export_annotations(
        args.format, args.images, args.masks, args.output, classes=args.classes, tolerance=args.tolerance
    )
    logger.info("Wrote the annotations of %d images to %s", count, args.output)


COMMANDS = (
    Command(
        name="data prepare",
        summary="Convert the images and masks of a data set to ArrayRecord files.",
        add_arguments=add_prepare_arguments,
        run=prepare,
        examples=("data prepare folder --source photos --data-dir data", "data prepare sbd"),
        lists=("data sets to prepare",),
    ),
    Command(
        name="data check",
        summary="Read every example of a data set: check sizes and labels, count classes, find leaks between splits.",
        add_arguments=add_check_arguments,
        run=check,
        examples=("data check folder --source photos", "data check folder --source fields --channels 5"),
        lists=("data sets",),
    ),
    Command(
        name="data show",
        summary="Draw a gallery of images and masks of a split.",
        add_arguments=add_show_arguments,
        run=show,
        examples=(
            "data show synthetic --output synthetic.png",
            "data show folder --data-dir data --split val --count 20 --output val.png",
        ),
        lists=("data sets",),
    ),
    Command(
        name="data import",
        summary="Convert what an annotation tool wrote to a folder of images and masks.",
        add_arguments=add_import_arguments,
        run=import_annotations,
        examples=(
            "data import --from coco instances.json --images photos --output leaves",
            "data import --from cvat cvat_export.zip --output leaves",
        ),
    ),
    Command(
        name="data export",
        summary="Write masks as annotations, to correct predictions in an annotation tool.",
        add_arguments=add_export_arguments,
        run=export_annotations,
        examples=(
            "data export --to cvat photos predictions --classes leaves/classes.txt --output to_correct",
            "data export --to labelme photos masks --classes classes.txt --tolerance 2 --output to_correct",
        ),
    ),
)
