"""The command: exit codes, one line for a mistake, overrides, and the run that everything starts with."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import __version__
from deeplab_jax.cli import arguments as arguments_lib
from deeplab_jax.cli import main
from deeplab_jax.config import load_config, to_dict
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained import bundle, load

COMMANDS = (
    ["train"],
    ["evaluate"],
    ["predict"],
    ["benchmark-latency"],
    ["demo"],
    ["summary"],
    ["export"],
    ["convert"],
    ["presets"],
    ["data"],
    ["data", "prepare"],
    ["data", "check"],
    ["data", "show"],
)


@pytest.fixture
def run(capsys, compilation_cache):
    """Runs a command; its exit code, what it printed, and the lines on stderr."""

    def run_command(*arguments) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as done:
            main.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return done.value.code, printed.out, printed.err.splitlines()

    return run_command


# ---- Help and version ----


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, [])
    assert f"usage: deeplab-jax {' '.join(command)}" in out


def test_the_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"^    {command[0]}\s", out, re.M)


def test_python_m_runs_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_jax", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"deeplab_jax {__version__}\n", "")


@pytest.mark.parametrize("code", [0, 75])
def test_a_command_that_has_ended_tears_nothing_down_but_lets_others_end(code):
    """What was registered after its start ends with it; what the interpreter would do behind that is left out."""
    program = (
        "import atexit, sys\n"
        "from deeplab_jax import __main__\nfrom deeplab_jax.cli import main\n"
        "def command():\n"
        "    atexit.register(print, 'files are closed')\n"
        f"    sys.exit({code})\n"
        "main.main = command\n"
        "atexit.register(print, 'torn down')\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("files are closed\n", "", code)


# ---- A wrong command line: exit code 2 ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("tran",), "invalid choice: 'tran'"),
        (("train",), "required: --workdir"),
        (("data", "prepair"), "invalid choice: 'prepair'"),
        (("train", "--workdir", "w"), "no --config is given"),
        (("train", "--workdir", "w", "--config"), "--config needs a name or a file"),
        (("train", "--workdir", "w", "--config", "quickstart", "--stpes=3"), "unknown argument --stpes=3"),
        (("train", "--workdir", "w", "--config", "quickstart", "stray"), "unknown argument stray"),
        (("data", "prepare", "sbd", "--sorce", "x"), "unknown argument --sorce"),
        (("evaluate", "--data", "sbd"), "one of the arguments --workdir --preset is required"),
        (("predict", "a.png", "--output", "o", "--workdir", "w", "--preset", "p"), "--preset: not allowed with"),
        (("predict", "--output", "o"), "nothing to label: give images, folders, videos or --camera"),
        (("predict", "a.png", "--output", "o", "--smooth", "0.5"), "--smooth is for videos, and there is none"),
        (("predict", "a.png", "--output", "o", "--size", "257"), "'257' is not HEIGHTxWIDTH, for instance 257x257"),
        (("predict", "a.png", "--output", "o", "--scales", "1,x"), "'1,x' is not a list of factors"),
        (("predict", "a.mp4", "--output", "o", "--codec", "h264"), "invalid choice: 'h264'"),
        (("benchmark-latency", "--batches", "1,0"), "'0' is not a number of at least 1"),
        (("demo", "--port", "70000"), "--port 70000 must be between 0 and 65535"),
        (("demo", "--max-megapixels", "0"), "--max-megapixels 0 must be at least 1"),
        (("convert", "x.pth", "--output", "o"), "required: --from"),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--config.data.batchsize=8"),
            "config field data.batchsize does not exist; did you mean data.batch_size?",
        ),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--config.modl.backbone=x"),
            "config field modl.backbone does not exist; did you mean model?",
        ),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--config.data.name.first=s"),
            "config field data.name.first does not exist; did you mean data.name?",
        ),
        (("train", "--workdir", "w", "--config", "quickstart", "--config.data.batch_size=four"), "four"),
        (("train", "--workdir", "w", "--config", "quickstart", "--config.data.image_size=(48,"), "image_size"),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--coordinator", "a:1"),
            "--coordinator, --num-processes and --process-id belong together",
        ),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--cluster", "--local-processes", "2"),
            "give one of --coordinator, --cluster and --local-processes",
        ),
        (
            ("train", "--workdir", "w", "--config", "quickstart", "--local-processes", "0"),
            "--local-processes 0 must be at least 1",
        ),
        (("summary", "--config", "quickstart", "--classes", "many"), "--classes: invalid int value: 'many'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_two(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err) == 1, err
    assert err[0].startswith("deeplab-jax")
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


def test_a_config_file_that_sets_a_field_there_is_not_is_named(run, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from deeplab_jax.config import base_config\n"
        "def get_config(arg=None):\n"
        "    config = base_config()\n"
        "    config.data.batchsize = 4\n"
        "    return config\n"
    )
    code, _, err = run("summary", "--config", file)
    assert code == 1
    assert len(err) == 1, err
    assert err[0].startswith(f"deeplab-jax: config {file}, line 4: ")
    assert 'Did you mean "batch_size"' in err[0]


# ---- Overrides ----


def test_overrides_reach_their_fields():
    config = arguments_lib.parse_config(
        [
            "--config",
            "quickstart:size=64,batch=16",
            "--config.data.image_size=(48,40)",
            "--config.train.duration=3 steps",
            "--config.data.num_examples=12",  # a placeholder: None until set
            "--config.optimizer.clip_norm=2",
            "--config.eval.every=12.5%",
            "--config.model.multi_grid=(1,2,4)",
            "--config.optimizer.frozen=('backbone',)",
            "--config.log.tensorboard=False",
            "--config.train.init_from=runs/other",
            "--config.optimizer.learning_rate_multipliers.backbone=0.5",
        ]
    )
    expected = to_dict(load_config("quickstart", size=64, batch=16))
    expected["data"] |= {"image_size": [48, 40], "num_examples": 12}
    expected["train"] |= {"duration": "3 steps", "init_from": "runs/other"}
    expected["optimizer"] |= {"clip_norm": 2.0, "frozen": ["backbone"]}
    expected["optimizer"]["learning_rate_multipliers"]["backbone"] = 0.5
    expected["eval"]["every"] = "12.5%"
    expected["model"]["multi_grid"] = [1, 2, 4]
    expected["log"]["tensorboard"] = False
    assert to_dict(config) == expected


def test_a_value_may_follow_its_field_after_a_space_or_an_equals_sign():
    joined = arguments_lib.parse_config(["--config=quickstart", "--config.train.duration=3steps"])
    apart = arguments_lib.parse_config(["--config", "quickstart", "--config.train.duration", "3steps"])
    assert to_dict(joined) == to_dict(apart)
    assert apart.train.duration == "3steps"


def test_without_a_name_overrides_change_the_base_given():
    base = load_config("quickstart")
    config = arguments_lib.parse_config(["--config.eval.protocol=squeeze"], base=base)
    assert config.eval.protocol == "squeeze"
    with pytest.raises(main.UsageError, match="config field eval.protocl does not exist; did you mean eval.protocol?"):
        arguments_lib.parse_config(["--config.eval.protocl=squeeze"], base=load_config("quickstart"))


def test_an_argument_that_the_config_does_not_know_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match="config argument 'sise' does not exist; did you mean size?"):
        arguments_lib.parse_config(["--config", "quickstart:sise=3"])


# ---- A user's mistake: exit code 1, one line, nothing left behind ----


def _fails_with_one_line(result: tuple[int, str, list[str]], message: str) -> None:
    code, out, err = result
    assert (code, out) == (1, "")
    assert len(err) == 1, err
    assert err[0].startswith("deeplab-jax: ")
    assert message in err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "--config", "quikstart"),
            "no config named 'quikstart': not a file and not a built-in config; did you",
        ),
        (("train", "--config", "quickstart:stps=3"), "config argument 'stps' does not exist; did you mean steps?"),
        (
            ("train", "--config", "kerascv_guide:batch=8", "--config.data.data_dir=data"),
            "data set sbd is not prepared in data; run `deeplab-jax data prepare sbd --data-dir data`",
        ),
        (("train", "--config", "quickstart:batch=4"), "data.batch_size=4 does not divide over 8 devices"),
        (("train", "--config", "quickstart", "--config.data.name=synthetc"), "did you mean synthetic?"),
        (("train", "--config", "quickstart", "--config.data.train_split=trian"), "did you mean train?"),
        (
            ("train", "--config", "quickstart", "--config.model.backbone=resnet14_v1"),
            "model.backbone='resnet14_v1' does not exist",
        ),
        (
            ("train", "--config", "quickstart", "--config.train.duration=2 epoch"),
            "train.duration='2 epoch' has an unknown unit; did you mean epochs?",
        ),
        (
            ("train", "--config", "quickstart", "--config.train.duration=0 steps"),
            "train.duration='0 steps' must be above 0",
        ),
        (("train", "--config", "quickstart", "--config.loss.name=dice"), "loss.name"),
        (("train", "--config", "quickstart", "--config.optimizer.schedule=cosin"), "optimizer.schedule"),
        (("train", "--config", "quickstart", "--config.loss.class_weights=(1.0,2.0)"), "loss.class_weights"),
        (("evaluate",), "w holds no run: there is no config.json in it; `deeplab-jax train` writes one"),
        (("predict", "a.jpg", "--output", "out"), "a.jpg does not exist"),
        (("predict", "--camera", "0", "--output", "out"), "w holds no run"),
    ],
)
def test_a_mistake_is_one_line_and_one(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _fails_with_one_line(run(arguments[0], "--workdir", "w", *arguments[1:]), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "sbdd"), "data set 'sbdd' does not exist; did you mean sbd?"),
        (("prepare", "synthetic"), "nothing to prepare"),
        (("prepare", "folder", "--source", "nowhere"), "nowhere does not exist"),
        (("prepare", "camvid"), "--source"),
    ],
)
def test_a_mistake_in_preparing_data_is_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _fails_with_one_line(run("data", *arguments, "--data-dir", "data"), message)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_workdir_that_is_a_file_is_refused(run, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    _fails_with_one_line(run("train", "--config", "quickstart", "--workdir", file), f"{file} cannot be made")
    assert file.read_text() == "mine"


def test_a_run_that_was_stopped_before_its_first_checkpoint_cannot_be_used(run, workdir, tmp_path):
    for step in (workdir / "checkpoints").iterdir():
        step.rename(tmp_path / f"moved_{step.name}")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    _fails_with_one_line(run("evaluate", "--workdir", workdir), "has no checkpoint yet")
    result = run("predict", tmp_path / "a.png", "--workdir", workdir, "--output", tmp_path / "out")
    _fails_with_one_line(result, "has no checkpoint yet")


def test_ctrl_c_is_one_line_and_130(run, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deeplab_jax.training.loop.train", interrupted)
    code, _, err = run("train", "--config", "quickstart", "--workdir", tmp_path / "run")
    assert code == 130
    assert len(err) == 1
    assert "continues from the newest checkpoint" in err[0]


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("deeplab_jax.training.loop.train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main.main(["train", "--config", "quickstart", "--workdir", str(tmp_path / "run")])


# ---- What the commands leave ----


def test_training_leaves_its_scores_config_images_and_a_checkpoint(trained, tiny_config):
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoints", "config.json", "curves.png", "gallery.png", "labels.json", "learning_rate.png", "lock",
        "metrics.json", "metrics.jsonl",
    }  # fmt: skip
    scores = json.loads((trained / "metrics.json").read_text())
    assert scores["step"] == 2
    assert scores["num_images"] == 200
    assert 0 < scores["num_pixels"] < 200 * 32 * 32  # some are void
    assert scores["config"] == json.loads((trained / "config.json").read_text()) == to_dict(tiny_config)
    assert list(scores["per_class_iou"]) == json.loads((trained / "labels.json").read_text())["class_names"]
    assert scores.keys() == {
        "mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou", "per_class_iou", "loss", "num_images",
        "num_pixels", "step", "config",
    }  # fmt: skip


def test_evaluating_again_gives_the_same_scores_and_writes_them_where_asked(run, workdir, tmp_path):
    at_the_end = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    code, out, err = run("evaluate", "--workdir", workdir, "--json", tmp_path / "scores.json")
    assert (code, out) == (0, "")
    assert f"mean IoU {at_the_end['mean_iou']:.4f}" in err[-1]
    assert json.loads((workdir / "metrics.json").read_text()) == at_the_end
    assert json.loads((tmp_path / "scores.json").read_text()) == at_the_end


def test_evaluating_takes_another_split_and_protocol(run, workdir):
    arguments = ["--split", "train", "--config.eval.protocol=squeeze", "--config.data.num_examples=10"]
    code, _, err = run("evaluate", "--workdir", workdir, *arguments)
    assert code == 0, err
    scores = json.loads((workdir / "metrics.json").read_text())
    assert scores["num_images"] == 10
    assert scores["config"]["eval"]["protocol"] == "squeeze"


def test_evaluating_on_data_of_other_classes_is_refused(run, workdir, own_folder, tmp_path):
    code, _, err = run("data", "prepare", "folder", "--source", own_folder, "--data-dir", tmp_path / "data")
    assert code == 0, err
    before = (workdir / "metrics.json").read_bytes()
    result = run("evaluate", "--workdir", workdir, "--data", "folder", "--data-dir", tmp_path / "data")
    _fails_with_one_line(result, "folder has the classes ground, crop, weed, but the network")
    assert (workdir / "metrics.json").read_bytes() == before


def test_predicting_from_the_command_line(run, workdir, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(images / name)
    arguments = ["predict", images, "--workdir", workdir, "--output", tmp_path / "out"]
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    assert "2 masks and overlays in" in err[-1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_mask.png", "a_overlay.png", "b_mask.png", "b_overlay.png",
    ]  # fmt: skip
    _fails_with_one_line(run(*arguments), "a_mask.png exists; choose another --output or remove it")
    missing = ["predict", tmp_path / "none.png", "--workdir", workdir, "--output", tmp_path / "other"]
    _fails_with_one_line(run(*missing), "none.png does not exist")
    assert not (tmp_path / "other").exists()
    arguments[arguments.index(workdir)] = tmp_path / "no-run"  # told before a network is looked for
    _fails_with_one_line(run(*arguments), "a_mask.png exists; choose another --output or remove it")


# ---- Pretrained networks ----

TINY_TFLITE = pathlib.Path(__file__).parents[1] / "pretrained" / "readers" / "data" / "float.tflite"


def test_a_file_is_converted_reported_and_not_overwritten(run, tmp_path):
    arguments = ["convert", "--from", "tflite", TINY_TFLITE, "--output", tmp_path / "net"]
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    assert "0 missing, 0 unused" in err[0]
    assert err[-1].startswith("mobilenet_v2, ")
    assert err[-1].endswith(f"in {tmp_path / 'net'}")
    _fails_with_one_line(run(*arguments), "net exists and is not empty")
    again = [*arguments[:-1], tmp_path / "again"]
    assert run(*again)[0] == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "net" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_several_networks_become_the_mean_of_their_variables(run, trained, tmp_path):
    network = load(trained)
    for name, factor in (("one", 1), ("three", 3)):
        variables = jax.tree.map(lambda leaf, factor=factor: factor * leaf, network.variables)
        model = network.model.copy_and_resolve_references()
        model.freeze_norm_statistics = name == "three"  # how a network was trained does not matter
        bundle.save(dataclasses.replace(network, model=model, variables=variables), tmp_path / name)
    sources = tmp_path / "one", tmp_path / "three"
    code, _, err = run("convert", "--from", "deeplab_jax", *sources, "--output", tmp_path / "mean")
    assert code == 0
    assert "the mean of 2 networks' variables" in err
    jax.tree.map(
        lambda mean, leaf: np.testing.assert_allclose(mean, 2 * leaf, rtol=1e-6),  # one rounding
        load(tmp_path / "mean").variables,
        network.variables,
    )
    other = network.model.copy_and_resolve_references()
    other.align_corners = not other.align_corners
    bundle.save(dataclasses.replace(network, model=other), tmp_path / "other")
    arguments = ("convert", "--from", "deeplab_jax", tmp_path / "one", tmp_path / "other", "--output", tmp_path / "no")
    _fails_with_one_line(run(*arguments), "network 2 is another one than the first, or of other classes")


def test_a_run_becomes_a_folder_to_hand_on(run, trained, tmp_path):
    folder, again = tmp_path / "net", tmp_path / "again"
    assert run("convert", "--from", "workdir", trained, "--size", "48x64", "--half", "--output", folder)[0] == 0
    network = load(folder)
    assert network.image_size == (48, 64)
    assert network.label_set == load(trained).label_set
    assert (folder / "model.safetensors").stat().st_size < 0.6 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(network.variables)
    )
    assert run("convert", "--from", "deeplab_jax", folder, "--half", "--output", again)[0] == 0
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    code, _, err = run("convert", "--from", "workdir", trained, "--size", "48", "--output", tmp_path / "other")
    assert code == 2
    assert "'48' is not HEIGHTxWIDTH, for instance 257x257" in err[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "--from", "tflyte", "x", "--output", "o"), "format 'tflyte' does not exist; did you mean tflite?"),
        (("convert", "--from", "tflite", "x.tflite", "--output", "o"), "x.tflite"),
        (("evaluate", "--preset", "resnet50_v2_imagnet"), "did you mean resnet50_v2_imagenet?"),
        (("predict", "--camera", "0", "--output", "o", "--preset", "some/folder"), "some/folder is no folder of a"),
    ],
)
def test_a_mistake_with_a_pretrained_network_is_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _fails_with_one_line(run(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_named_the_packages_own_predicts(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("deeplab_jax.pretrained.DEFAULT_PRESET", str(trained))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    options = ["--classes", "disk,star", "--window", "32x32"]
    code, _, err = run("predict", tmp_path / "a.png", "--output", tmp_path / "out", *options)
    assert (code, err[-1]) == (0, f"1 masks and overlays in {tmp_path / 'out'}")
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {1, 4}


def test_a_preset_is_evaluated_and_predicts(run, trained, tmp_path):
    bundle.save(load(trained), tmp_path / "net")
    Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(tmp_path / "a.png")
    code, _, err = run("predict", tmp_path / "a.png", "--preset", tmp_path / "net", "--output", tmp_path / "out")
    assert code == 0, err
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert mask.size == (20, 30)
    arguments = ["--data", "synthetic", "--split", "train", "--config.data.num_examples=10", "--config.mesh.data=1"]
    code, _, err = run("evaluate", "--preset", tmp_path / "net", *arguments, "--json", tmp_path / "scores.json")
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["num_images"] == 10
    assert err[-1].endswith("on 10 images")
    assert f"mean IoU {scores['mean_iou']:.4f}" in err[-1]


def test_the_presets_are_a_table_on_stdout(run):
    code, out, err = run("presets")
    assert (code, err) == (0, [])
    for name in ("deeplab_v3_plus_resnet50_pascalvoc", "efficientnet_lite0_imagenet", "deeplabv3_resnet101_coco"):
        assert name in out


def test_a_summary_lists_where_arrays_live_on_devices_that_are_not_here(run):
    code, out, err = run("summary", "--config", "quickstart:size=64,batch=32", "--mesh", "32", "--config.mesh.fsdp=4")
    assert (code, err) == (0, [])
    assert "data 8 x fsdp 4 x spatial 1" in out
    assert "axis 0 over data x fsdp" in out
    code, _, err = run("summary", "--config", "quickstart:size=64,batch=32", "--mesh", "32", "--config.mesh.fsdp=5")
    assert code == 1
    assert "mesh.fsdp=5" in err[0]


def test_a_summary_is_a_table_on_stdout(run):
    code, out, err = run("summary", "--config", "quickstart:size=64", "--classes", "6")
    assert (code, err) == (0, [])
    assert "resnet10_v1_slim, output stride 8, 64x64 pixels" in out
    assert "64x64x6" in out


def test_data_sets_are_found_where_the_environment_says(run, own_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "DEEPLAB_JAX_DATA", str(tmp_path / "elsewhere"))
    code, _, err = run("data", "prepare", "folder", "--source", own_folder)
    assert code == 0
    assert str(tmp_path / "elsewhere") in err[-1]
    assert pathlib.Path(tmp_path / "elsewhere" / "folder").is_dir()


def test_a_data_set_is_checked_before_and_after_it_is_prepared(run, own_folder, tmp_path):
    code, out, _ = run("data", "check", "folder", "--source", own_folder)
    assert code == 0
    assert "weed" in out
    assert run("data", "prepare", "folder", "--source", own_folder, "--data-dir", tmp_path / "data")[0] == 0
    assert run("data", "check", "folder", "--data-dir", tmp_path / "data")[0] == 0
    (own_folder / "masks" / "field_002.png").unlink()
    code, out, err = run("data", "check", "folder", "--source", own_folder)
    assert code == 1
    assert "field_002" in out
    assert err == ["deeplab-jax: folder has 1 wrong examples and 0 leaks; see the tables above"]


def test_a_data_set_is_shown_as_a_image_that_is_not_overwritten(run, tmp_path):
    arguments = ("data", "show", "synthetic", "--split", "val", "--count", "3", "--output", tmp_path / "val.png")
    code, _, err = run(*arguments)
    assert code == 0
    assert "3 of 200 examples of synthetic/val" in err[-1]
    with Image.open(tmp_path / "val.png") as image:
        assert min(image.size) > 100
    _fails_with_one_line(run(*arguments), "val.png exists")
    assert run(*arguments[:-3], "0", "--output", tmp_path / "none.png")[0] == 2
