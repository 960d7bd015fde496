"""The wording of error messages."""

import errno
import os

import pytest

from deeplab_jax.errors import from_os_error, is_file_error


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "permissions"),
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "not read-only"),
        (errno.ENOTDIR, "is a file where a folder is expected"),
        (errno.EISDIR, "is a folder where a file is expected"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_the_fix(number, fix):
    error = OSError(number, os.strerror(number), "runs/a")
    assert str(from_os_error(error)).startswith(f"cannot access runs/a: {os.strerror(number)}; ")
    assert fix in str(from_os_error(error))
    assert str(from_os_error(error, "cannot write runs/b")).startswith(f"cannot write runs/b: {os.strerror(number)}; ")
    assert is_file_error(error)


def test_both_files_of_a_renaming_are_named():
    error = OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")
    assert str(from_os_error(error)) == "cannot access a and b: Invalid cross-device link"


def test_an_error_without_a_file_or_a_known_number_is_not_about_files():
    assert is_file_error(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_file_error(OSError(errno.ECONNREFUSED, "Connection refused"))
    assert not is_file_error(OSError("a library raised this"))
