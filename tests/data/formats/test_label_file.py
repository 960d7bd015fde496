"""`labels.toml`: the ids and colors of masks by class."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.data.formats import label_file
from deeplab_jax.data.formats.class_list import read_classes
from deeplab_jax.data.formats.label_file import change_ids, read_label_file
from deeplab_jax.errors import UserError

KEYS = ("classes", "ignore_ids", "ignore_colors", "reduce_zero_label", "name", "id", "ids", "color", "colors")

TABLES = """
ignore_ids = [0]
ignore_colors = [[0, 0, 0], "#0000ff"]

[[classes]]
name = "road"
ids = [7, 300]
colors = [[128, 64, 128], "#ff0000"]

[[classes]]
name = "car"
id = 26
color = "#00008e"
"""


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, classes=None):
        (tmp_path / "labels.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        if classes is not None:
            (tmp_path / "classes.txt").write_text(classes)
        return read_label_file(
            tmp_path / "labels.toml", None if classes is None else read_classes(tmp_path / "classes.txt")
        )

    return write_and_read


def test_classes_with_ids_and_colors(read):
    found = read(TABLES)
    assert found.label_set.class_names == ("road", "car")
    assert found.label_set.palette == ((128, 64, 128), (0, 0, 142))
    assert found.label_map.ids == {255: 255, 7: 0, 300: 0, 26: 1, 0: 255}
    assert found.label_map.colors == {
        (224, 224, 192): 255,
        (128, 64, 128): 0,
        (255, 0, 0): 0,
        (0, 0, 142): 1,
        (0, 0, 0): 255,
        (0, 0, 255): 255,
    }
    assert found.has_ids
    assert found.has_colors


@pytest.mark.parametrize("classes", [None, "wall\nsky\n"])
def test_numbers_from_one(read, classes):
    names = 'classes = ["wall", "sky"]\n' if classes is None else ""
    found = read(f"reduce_zero_label = true\n{names}", classes)
    assert found.label_set.class_names == ("wall", "sky")
    assert found.label_map.ids == {255: 255, 0: 255, 1: 0, 2: 1}
    assert not found.has_colors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("classes = [", "is not valid TOML"),
        ("ignore_id = [0]\n", "unknown key 'ignore_id'; did you mean ignore_ids"),
        ("ignore_ids = [0]\n", "has no `classes`; list them here, or in classes.txt"),
        ('classes = ["a", "a"]\n', "two classes are named a; give one class several ids"),
        ('[[classes]]\nname = "a"\nid = 1\n[[classes]]\nname = "b"\n', "b has no id, but other classes do"),
        ('[[classes]]\nname = "a"\nid = 1\n[[classes]]\nname = "b"\nid = 1\n', "id 1 belongs to two classes, a and b"),
        ('[[classes]]\nname = "a"\nid = 70000\n', "source id 70000 of a label map is not from 0 to 65535"),
        ('[[classes]]\nname = "a"\nid = 1\nids = [2]\n', "a has both id and ids"),
        ('[[classes]]\nname = "a"\ncolour = "#112233"\n', "unknown key 'colour' of class 0; did you mean color"),
        ('[[classes]]\nname = "a"\ncolor = [0, 0, 256]\n', "colors of a must be colors"),
        ('[[classes]]\nname = "a"\ncolor = [0.5, 0, 1]\n', "colors of a must be colors"),
        ('[[classes]]\nname = "a"\ncolor = "red"\n', "colors of a must be colors"),
        ('classes = ["a"]\nignore_ids = ["0"]\n', "ignore_ids must be whole numbers"),
        ('reduce_zero_label = true\n[[classes]]\nname = "a"\nid = 1\n', "the classes have ids, but reduce_zero_label"),
        ('reduce_zero_label = 1\nclasses = ["a"]\n', "reduce_zero_label is 1; it must be true or false"),
        ('classes = [["a"]]\n', "write its name, or a table"),
        (
            'ignore_colors = ["#112233"]\n[[classes]]\nname = "a"\ncolor = "#112233"\n',
            r"color \(17, 34, 51\) is ignored, but it is a color of a",
        ),
        ("classes = []\n", "classes must be a list of names"),
        ('classes = ["a"]\nignore_ids = [-1]\n', "source id -1 of a label map is not from 0 to 65535"),
        ('classes = ["a"]\nignore_colors = [[0, 0, 256]]\n', "ignore_colors must be colors"),
        ('classes = ["é"]\n'.encode("latin-1"), "byte 12 is not valid UTF-8"),
        ("a = " + "[" * 5000, "is not valid TOML"),
    ],
)
def test_mistakes_are_named(read, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(content)
    assert "labels.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_in_both_files_are_refused(read):
    with pytest.raises(UserError, match="classes.txt lists classes too; list them in one of the files"):
        read('classes = ["a"]\n', "a\n")


def test_ids_of_a_class_list_that_states_them_stay(tmp_path):
    (tmp_path / "classes.txt").write_text("7: road\n26: car\n0: __ignore__\n")
    classes = read_classes(tmp_path / "classes.txt")
    assert classes.label_map.ids == {255: 255, 7: 0, 26: 1, 0: 255}
    assert change_ids(classes, ignore_ids=[26]).label_map.ids == {255: 255, 7: 0, 26: 255, 0: 255}
    with pytest.raises(UserError, match="the classes have ids, but reduce_zero_label"):
        change_ids(classes, reduce_zero_label=True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats() | st.sampled_from(["a", "#112233", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_values_of_every_kind_are_read_or_refused(values):
    try:
        found = label_file._read(values, None)
    except UserError:
        return
    assert found.label_map.num_classes == found.label_set.num_classes > 0
