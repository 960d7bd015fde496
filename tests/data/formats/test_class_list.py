"""Class lists of people and of annotation tools, in the encodings that editors write."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeplab_jax.data.formats.class_list import read_classes
from deeplab_jax.errors import UserError
from deeplab_jax.labels import IGNORE_LABEL

NAMES = ("background", "leaf", "tall stem")
COLORS = ((0, 0, 0), (48, 112, 32), (176, 112, 32))


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        path = tmp_path / "classes.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_classes(path)

    return write_and_read


@pytest.mark.parametrize(
    "content",
    [
        "background\nleaf\ntall stem\n",
        "\n  background\r\nleaf\r\n\r\ntall   stem",
        "# my classes\nbackground\nleaf\ntall stem\n",
        "0 background\n1 leaf\n2 tall stem\n",
        "0: background\n1: leaf\n2: tall stem\n",
        "__ignore__\nbackground\nleaf\ntall stem\n",
    ],
)
def test_names(read, content):
    found = read(content)
    assert found.label_set.class_names == NAMES
    assert not found.has_colors
    assert found.has_ignore == ("__ignore__" in content)


@pytest.mark.parametrize(
    "content",
    [
        "background 0 0 0\nleaf 48 112 32\ntall stem 176 112 32\n",
        "background,0,0,0\nleaf,48,112,32\ntall stem,176,112,32\n",
        "background\t0\t0\t0\nleaf\t48\t112\t32\ntall stem\t176\t112\t32\n",
        "background #000000\nleaf #307020\ntall stem #b07020\n",
        "0 0 0\tbackground\n48 112 32\tleaf\n176 112 32\ttall stem\n",  # CamVid
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:48,112,32::\ntall stem:176,112,32::\n",  # CVAT
    ],
)
def test_names_with_colors(read, content):
    found = read(content)
    assert (found.label_set.class_names, found.label_set.palette) == (NAMES, COLORS)
    assert found.has_colors


def test_the_list_of_labelme_begins_at_the_background(read):
    found = read("__ignore__\n_background_\nleaf\n")
    assert found.label_set.class_names == ("_background_", "leaf")
    assert found.has_ignore


def test_the_ignore_label_may_have_a_color(read):
    found = read("background 0 0 0\nleaf 1 2 3\n__ignore__ 255 255 255\n")
    assert found.label_set.class_names == ("background", "leaf")
    assert found.label_map.colors[255, 255, 255] == IGNORE_LABEL


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(read, encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    assert read(mark + "fondo\r\nhoja\r\nmañana\r\n".encode(encoding)).label_set.class_names == (
        "fondo",
        "hoja",
        "mañana",
    )


def test_names_that_begin_with_numbers_keep_them(read):
    assert read("1 euro\n2 euro\n").label_set.class_names == ("1 euro", "2 euro")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fondo\nhoja\nmañana\n".encode("latin-1"), r"line 3 is not valid UTF-8 \(byte 0xf1\); save the file as UTF-8"),
        ("fondo\nhoja\n".encode("utf-16-le"), "contains zero bytes, so it is not a text file in UTF-8"),
        (b"\xff\xfea", "line 1 is not valid UTF-8"),
        ("background 0 0 0\nleaf 300 0 0\n", r"line 2: color \(300, 0, 0\) of leaf is invalid; values are 0 to 255"),
        ("1 leaf\n0 background\n", "line 1: `1 leaf` is on the line of id 0; sort the lines by id"),
        ("background\n__ignore__\nleaf\n", "line 2: __ignore__ takes no id, .* make it the first line"),
        ("background 0 0 0\n__ignore__ 0 0 0\n", "__ignore__ has the color of class background"),
        ("background:0,0,0::\nleaf\n", "line 2: give a color"),
        ("a" + "," * 10_000 + "b\n", "line 1 has 10002 characters; write one class name per line"),
        ("# only a comment\n", "contains no class names"),
        ("__ignore__\n", "contains no class names"),
    ],
)
def test_mistakes_name_the_line(read, content, message):
    with pytest.raises(UserError, match=rf"classes\.txt(,|:)? {message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), st.text(alphabet="ab_#,:; 0129\n\t", max_size=60)))
def test_any_content_is_a_class_list_or_an_error_of_one_line(read, content):
    found, message = None, ""
    try:
        found = read(content)
    except UserError as error:
        message = str(error)
    assert found is not None or len(message.splitlines()) == 1
