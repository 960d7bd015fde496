"""The images of a folder are found by one rule, and everything else is listed or known clutter."""

import os

import pytest
from PIL import Image

from deeplab_jax.data import image_files, images
from deeplab_jax.errors import UserError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_images_are_found_by_suffix_in_any_case_and_the_rest_is_left_out(tmp_path):
    found = ["A.JPG", "b.Jpeg", "c.jfif", "d.PNG", "e.webp", "f.bmp", "g.tif", "h.TIFF", "i.gif", "j k.l.png"]
    others = ["a.jp2", "b.psd", "classes.txt", "noname", "z.eps"]
    touch(tmp_path, *found, *others)
    listed, left_out = image_files.list_images(tmp_path)
    assert (names(listed, tmp_path), names(left_out, tmp_path)) == (found, others)


@pytest.mark.parametrize("recursive", [False, True])
def test_clutter_is_neither_found_nor_left_out(tmp_path, recursive):
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini", "Icon\r")
    touch(tmp_path, "__MACOSX/._a.jpg", ".git/a.png", "@eaDir/a.jpg", ".ipynb_checkpoints/a.png")
    listed, left_out = image_files.list_images(tmp_path, recursive=recursive)
    assert (names(listed, tmp_path), left_out) == (["a.jpg"], [])


def test_subfolders_are_walked_or_left_out(tmp_path):
    touch(tmp_path, "z.png", "monday/b.jpg", "monday/a.jpg", "tuesday/late/a.jpg", "tuesday/notes.txt")
    listed, left_out = image_files.list_images(tmp_path)
    assert (names(listed, tmp_path), names(left_out, tmp_path)) == (["z.png"], ["monday", "tuesday"])
    listed, left_out = image_files.list_images(tmp_path, recursive=True)
    assert names(listed, tmp_path) == ["z.png", "monday/a.jpg", "monday/b.jpg", "tuesday/late/a.jpg"]
    assert names(left_out, tmp_path) == ["tuesday/notes.txt"]


def test_links_are_followed_without_end_and_pipes_are_left_out(tmp_path):
    touch(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "none.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    listed, left_out = image_files.list_images(tmp_path / "in", recursive=True)
    assert names(listed, tmp_path / "in") == ["a.png", "gone.png", "more/b.png"]
    assert names(left_out, tmp_path / "in") == ["pipe.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^cannot read folder .*none: No such file or directory$"):
        image_files.list_images(tmp_path / "none")


def test_what_is_left_out_is_described_by_kind_with_the_first_names(tmp_path):
    touch(tmp_path, "a.JP2", "b.jp2", "c.jp2", "d.jp2", "notes", "old/x.txt")
    _, left_out = image_files.list_images(tmp_path)
    description = image_files.describe_left_out(left_out)
    expected = "4 .jp2 files (a.JP2, b.jp2, c.jp2, ...), 1 file without suffix (notes) and 1 folder (old)"
    assert description == expected


@pytest.mark.parametrize("suffix", image_files.IMAGE_SUFFIXES)
def test_every_listed_suffix_can_be_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    formats = {".jfif": "JPEG"}
    Image.new("RGB", (8, 6), (200, 100, 50)).save(path, format=formats.get(suffix))
    assert images.read_image(path).shape == (6, 8, 3)
