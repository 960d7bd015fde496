"""`--help` of every command: examples that work, names that exist, no slow imports."""

import re
import shlex
import subprocess
import sys
import typing

import pytest

from deeplab_jax import data, export
from deeplab_jax.cli import main, names
from deeplab_jax.config import base_config, find_config
from deeplab_jax.data.annotation_formats import ANNOTATION_FORMATS
from deeplab_jax.data.prepare import preparable_names
from deeplab_jax.inference import computation, runtime, submission, video
from deeplab_jax.pretrained import FORMATS, presets

COMMANDS = [command.name for command in main.COMMANDS]
GROUPS = ["", "data", "papers"]


def examples(text: str) -> list[str]:
    return [line.strip() for line in text.partition("examples:\n")[2].splitlines() if line]


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS])
def test_help_shows_usage_and_two_examples(run, command):
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, [])
    assert out.startswith(f"usage: deeplab-jax {command}".rstrip())
    assert len(examples(out)) == 2
    assert all(example.startswith(f"deeplab-jax {command}".rstrip()) for example in examples(out))


@pytest.mark.parametrize("command", [*COMMANDS, *GROUPS])
def test_examples_of_the_help_parse(run, command, monkeypatch):
    ran = []

    def parse_only(command, args):
        if command.takes_config:
            from deeplab_jax.cli.config_flags import parse_config

            parse_config(args.config_arguments, base=None if command.needs_config else base_config())
        ran.append(command.name)

    shown = examples(run(*command.split(), "--help").out)
    monkeypatch.setattr(main, "run_command", parse_only)
    for example in shown:
        code, _, err = run(*shlex.split(example)[1:])
        assert (code, err) == (0, []), example
        for preset in re.findall(r"--preset (\w+)", example):
            presets.find_preset(preset)
    assert len(ran) == 2


def test_the_list_of_commands_has_a_summary_for_each(run):
    out = run("--help").out
    for command in main.COMMANDS:
        name = command.name.split()[0]
        assert re.search(rf"^    {name}\s", out, re.M)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train", ["quickstart", "voc2012_segmentation"]),
        ("evaluate", ["deeplabv3_resnet50_coco", "camvid"]),
        ("predict", ["deeplabv3_resnet50_coco"]),
        ("presets", ["resnet50_v2_imagenet"]),
        ("convert", ["tf-deeplab"]),
        ("data prepare", ["sbd"]),
    ],
)
def test_help_lists_names(run, command, names):
    out = run(*command.split(), "--help").out
    for name in names:
        assert re.search(rf"^  .*\b{name}\b", out.partition("--log-file")[2], re.M), name


@pytest.mark.parametrize(("command", "name"), [("train", "--config NAME"), ("predict", "[--config NAME]")])
def test_usage_shows_the_config(run, command, name):
    usage = run(command, "--help").out.partition("\n\n")[0]
    assert usage.splitlines()[-1].strip() == f"{name} [--config.GROUP.FIELD=VALUE ...]"
    assert "--config" not in run("presets", "--help").out


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_tells_of_the_restart_and_its_switch(run, command):
    assert "DEEPLAB_JAX_MALLOC=default" in run(command, "--help").out
    assert "DEEPLAB_JAX_MALLOC" not in run("predict", "--help").out


def test_help_imports_nothing_slow():
    program = (
        "import sys\nfrom deeplab_jax.cli import main\n"
        f"for command in {[*COMMANDS, *GROUPS]!r}:\n"
        "    try: main.main([*command.split(), '--help'])\n"
        "    except SystemExit as done: assert done.code == 0\n"
        "print('modules:', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "deeplab_jax" in modules
    assert not modules & {
        "jax", "flax", "optax", "orbax", "grain", "numpy", "cv2", "matplotlib", "tensorflow_datasets", "rich",
    }  # fmt: skip


# ---- Lists that stand in the help because their owners are slow to import ----


def test_names_are_those_of_their_owners():
    assert names.VIDEO_SUFFIXES == video.VIDEO_SUFFIXES
    assert tuple(video.CODECS) == names.CODECS
    assert runtime.RUNTIMES == names.RUNTIMES
    assert tuple(submission.SUBMISSIONS) == names.SUBMISSIONS
    assert typing.get_args(computation.Upsample) == names.UPSAMPLE
    assert tuple(FORMATS) == names.IMPORT_FORMATS
    assert tuple(ANNOTATION_FORMATS) == names.ANNOTATION_FORMATS
    written = [name for name, listed in ANNOTATION_FORMATS.items() if listed.write is not None]
    assert tuple(written) == names.ANNOTATION_EXPORT_FORMATS
    assert tuple(export.FORMATS) == names.EXPORT_FORMATS
    assert data.dataset_names() == list(names.DATA_SETS)
    assert preparable_names() == list(names.PREPARABLE_DATA_SETS)
    table = presets.load_table().values()
    assert [preset.name for preset in table if preset.classes is not None] == names.segmentation_presets()
    assert [preset.name for preset in table if preset.classes is None] == names.backbone_presets()
    for name in names.config_names():
        assert find_config(name).stem == name
