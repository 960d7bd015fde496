"""Preparing a data set whose folder is in a bucket: on the local disk, from where it is uploaded."""

import hashlib
import logging
import pathlib
import shutil

from deeplab_jax.data.prepared import prepared_folder
from deeplab_jax.storage import BucketPath, client
from deeplab_jax.storage.local_copies import cache_folder

logger = logging.getLogger(__name__)


def prepare_folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the folder on the local disk to prepare a data set of `data_dir` in: itself, unless it is in a bucket.

    It is the same for each call, so that an interrupted preparation continues. A data set whose upload was interrupted
    is removed.
    """
    if not isinstance(data_dir, BucketPath):
        return data_dir
    folder = cache_folder() / "prepare" / hashlib.sha256(str(data_dir / name).encode()).hexdigest()[:24]
    shutil.rmtree(prepared_folder(name, folder), ignore_errors=True)
    return folder


def publish(name: str, folder: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Uploads a data set that is prepared in `prepare_folder`, and removes it there.

    A data set without its descriptions is not prepared, so they are uploaded last.
    """
    if folder == data_dir:
        return
    source, target = prepared_folder(name, folder), prepared_folder(name, data_dir)
    files = sorted(path.name for path in source.iterdir())
    logger.info("uploading %s to %s", name, target)
    for is_description in (False, True):
        client.upload([(source / file, target / file) for file in files if file.endswith(".json") == is_description])
    shutil.rmtree(folder)
