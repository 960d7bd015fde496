"""Tables on standard output: names from files are plain text."""

import json

import pytest
from PIL import Image
from rich.table import Table

from deeplab_jax.cli import output
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import bundle, load

NAMES = ("road [/paved]", "[red]sky", ":dog:", "a\x1b[2Jb", "gpj.\u202egnp", "line\nbreak", "$x^$", "_private", "道路")
SHOWN = (
    "road [/paved]",
    "[red]sky",
    ":dog:",
    r"a\x1b[2Jb",
    r"gpj.\u202egnp",
    r"line\nbreak",
    "$x^$",
    "_private",
    "道路",
)


def test_names_in_tables_are_plain_text(capsys):
    table = Table(title=NAMES[0], caption=NAMES[3])
    table.add_column(NAMES[1])
    for name in NAMES:
        table.add_row(name)
    output.print_tables([table])
    printed = capsys.readouterr().out
    for name in SHOWN:
        assert f" {name} " in printed.replace("│", " "), name
    assert not set(printed) & {"\x1b", "\u202e"}


@pytest.fixture
def strange_network(trained, tmp_path):
    """A saved network whose classes have strange names."""
    network = load(trained)
    count = network.label_set.num_classes
    names = LabelSet(NAMES[:count], network.label_set.palette)
    bundle.save(type(network)(**(vars(network) | {"label_set": names})), tmp_path / "p1 [x]")
    return tmp_path / "p1 [x]"


def test_prediction_with_strange_names_writes_its_files(run, strange_network, tmp_path):
    image = tmp_path / "p1 [x]\x1b[1m.png"
    Image.new("RGB", (48, 40), "gray").save(image)
    code, out, err = run("predict", image, "--preset", strange_network, "--output", tmp_path / "x[/y]")
    assert (code, out) == (0, ""), err
    assert (tmp_path / "x[/y]" / f"{image.stem}_mask.png").is_file()
    assert "x[/y]" in err[-1]
    code, _, err = run("predict", image, "--preset", strange_network, "--output", tmp_path / "x[/y]")
    assert code == 1
    assert r"p1 [x]\x1b[1m_mask.png exists" in err[0]


def test_a_data_set_with_strange_names_is_checked_and_drawn(run, own_folder, tmp_path):
    (own_folder / "classes.txt").write_text("road [/paved]\n$x^$\n[red]sky\n")
    (own_folder / "masks" / "field_002.png").unlink()
    (own_folder / "images" / "field_002.jpg").rename(own_folder / "images" / "p1 [x].jpg")
    code, out, _ = run("data", "check", "folder", "--source", own_folder)
    assert code == 1
    for shown in ("road [/paved]", "[red]sky", "p1 [x]"):
        assert shown in out
    (own_folder / "images" / "p1 [x].jpg").unlink()
    data = tmp_path / "data"
    assert run("data", "prepare", "folder", "--source", own_folder, "--data-dir", data).code == 0
    values = json.loads(run("data", "check", "folder", "--data-dir", data, "--json").out)
    assert values["class_names"] == ["road [/paved]", "$x^$", "[red]sky"]
    code, _, err = run("data", "show", "folder", "--data-dir", data, "--output", tmp_path / "all [x].png")
    assert code == 0, err
    code, _, err = run("data", "show", "folder", "--data-dir", data, "--output", tmp_path / "all.xyz")
    assert (code, len(err)) == (1, 1)
    assert "the suffix is not a format of figures; use .png, " in err[0]
