"""The command as a whole: exit codes, invalid command lines, and one line for each user's mistake."""

import subprocess
import sys

import pytest

from deeplab_jax import __version__
from deeplab_jax.cli import main
from deeplab_jax.errors import Preempted


def test_python_m_runs_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "deeplab_jax", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"deeplab_jax {__version__}\n", "")


@pytest.mark.parametrize("code", [0, 75])
def test_exit_handlers_run_but_the_interpreter_is_not_torn_down(code):
    """Handlers registered after the start of the command run; those registered before, like a teardown, do not."""
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


def test_a_closed_pipe_is_not_an_error_message():
    command = f"{sys.executable} -m deeplab_jax presets --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


# ---- Invalid command lines: exit code 2 ----

TRAIN = ("train", "--workdir", "w", "--config", "quickstart")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("tran",), "invalid choice: 'tran'"),
        (("train",), "required: --workdir"),
        (("data", "prepair"), "invalid choice: 'prepair'"),
        (TRAIN[:3], "no --config given; try --config quickstart"),
        (TRAIN[:4], "--config needs the name of a config or a file"),
        (
            (*TRAIN, "--stpes=3"),
            "unknown argument --stpes=3; did you mean --config.train.duration instead of --stpes?; see `deeplab-jax",
        ),
        ((*TRAIN, "stray"), "unknown argument stray"),
        (
            ("data", "prepare", "sbd", "--sorce", "x"),
            "unknown argument --sorce; did you mean --source instead of --sorce?; see",
        ),
        (("presets", "--config", "quickstart"), "unknown argument --config"),
        (("evaluate", "--data", "sbd"), "one of the arguments --workdir --preset is required"),
        (("predict", "a.png", "--output", "o", "--workdir", "w", "--preset", "p"), "--preset: not allowed with"),
        (("predict", "--output", "o"), "no input: give images, folders, videos or --camera"),
        (("predict", "a.png", "--output", "o", "--smooth", "0.5"), "--smooth applies to videos, but no video"),
        (("predict", "a.png", "--output", "o", "--size", "257"), "'257' is not HEIGHTxWIDTH, for example 257x257"),
        (("predict", "a.png", "--output", "o", "--scales", "1,x"), "'1,x' is not a list of scales"),
        (("predict", "a.mp4", "--output", "o", "--codec", "h264"), "invalid choice: 'h264'"),
        (("benchmark-latency", "--batches", "1,0"), "'0' is not an integer between 1 and 2147483647"),
        (("demo", "--port", "70000"), "'70000' is not a port between 0 and 65535"),
        (("demo", "--max-megapixels", "0"), "--max-megapixels: '0' is not an integer between 1 and"),
        (("convert", "x.pth", "--output", "o"), "required: --from"),
        (("convert", "--from", "workdir", "x", "--size", "48", "--output", "o"), "'48' is not HEIGHTxWIDTH"),
        (
            ("data", "show", "synthetic", "--count", "0", "--output", "o.png"),
            "'0' is not an integer between 1 and 2147483647",
        ),
        (("aot", "--config", "quickstart", "--topology", "v5e:2x2", "--batch-per-chip", "0"), "'0' is not an integer"),
        (
            (*TRAIN, "--config.data.batchsize=8"),
            "config field data.batchsize does not exist; did you mean data.batch_size?",
        ),
        ((*TRAIN, "--config.modl.backbone=x"), "config field modl.backbone does not exist; did you mean model.b"),
        ((*TRAIN, "--config.data.name.first=s"), "config field data.name.first does not exist; did you mean data.name"),
        ((*TRAIN, "--config.data.batch_size=four"), "four"),
        ((*TRAIN, "--config.data.image_size=(48,"), "image_size"),
        ((*TRAIN, "--coordinator", "a:1"), "--coordinator, --num-processes and --process-id must be given together"),
        (
            (*TRAIN, "--cluster", "--local-processes", "2"),
            "--coordinator, --cluster and --local-processes are alternatives; give only one",
        ),
        ((*TRAIN, "--local-processes", "0"), "--local-processes: '0' is not an integer between 1 and"),
        (("train", "--workdr", "w", *TRAIN[3:]), "required: --workdir; did you mean --workdir instead of --workdr?"),
        ((*TRAIN, "--batch-size", "8"), "--batch-size; did you mean --config.data.batch_size instead of --batch-size?"),
        ((*TRAIN, "--config.optimizer.lr=0.1"), "optimizer.lr does not exist; did you mean optimizer.learning_rate?"),
        ((*TRAIN, "--config.train.steps=5"), "config field train.steps does not exist; write train.duration='N steps'"),
        (
            (*TRAIN, "--config.optimizer=sgd"),
            "config field optimizer is a group of fields; set one of optimizer.bias_multiplier, ",
        ),
        (
            (*TRAIN, "--config.train.duration=5", "epochs"),
            "a value with spaces needs quotes: '--config.train.duration=5 epochs'",
        ),
        (
            (*TRAIN, "--config.train.duration", "5", "epochs", "--quiet"),
            "a value with spaces needs quotes: '--config.train.duration 5 epochs'",
        ),
        (("predict", "a.png", "--output", ""), "--output: it is empty; give a name, a file or a folder"),
        (("predict", "a.png", "--output", "o", "--size", "9" * 5000 + "x5"), "is not HEIGHTxWIDTH"),
        (("predict", "a.png", "--output", "o", "--size", "70000x5"), "with sides of at most 65535"),
        (("predict", "--output", "o", "--camera=-1"), "--camera: '-1' is not an integer between 0 and"),
        (("predict", "a.mp4", "--output", "o", "--smooth", "nan"), "--smooth: 'nan' is not a number between 0 and 1"),
        (("data", "prepare", "folder", "--val-fraction", "1.5"), "--val-fraction: '1.5' is not a number between 0 and"),
        ((*TRAIN, "--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"), "--process-id 2 must be below"),
        (("summary", "--config", "quickstart", "--classes", "256"), "--classes: '256' is not an integer between 1 and"),
        (("summary", "--config", "quickstart", "--mesh", "0"), "--mesh: '0' is not an integer between 1 and"),
        (
            ("summary", "--config", "quickstart", "--classes", "many"),
            "--classes: 'many' is not an integer between 1 and 255",
        ),
    ],
)
def test_an_invalid_command_line_is_reported_in_one_line(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err) == 1, err
    assert err[0].startswith("deeplab-jax: ")
    assert message in err[0]
    assert list(tmp_path.iterdir()) == []


# ---- A user's mistake: exit code 1 ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "--config", "quikstart"),
            "no config named 'quikstart': not a file and not a built-in config; did you mean quickstart?",
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
            "train.duration='2 epoch' has an unknown unit; did you mean '2 epochs'?",
        ),
        (
            ("train", "--config", "quickstart", "--config.train.duration=0 steps"),
            "train.duration='0 steps' must be above 0",
        ),
        (("train", "--config", "quickstart", "--config.loss.terms=dise"), "loss.terms"),
        (("train", "--config", "quickstart", "--config.optimizer.schedule=cosin"), "optimizer.schedule"),
        (("train", "--config", "quickstart", "--config.loss.class_weights=(1.0,2.0)"), "loss.class_weights"),
        (("evaluate",), "w does not hold a run: it has no config.json; `deeplab-jax train` writes one"),
        (("predict", "a.jpg", "--output", "out"), "a.jpg does not exist"),
        (("predict", "--camera", "0", "--output", "out"), "w does not hold a run"),
    ],
)
def test_a_mistake_with_a_run_is_reported_in_one_line(fails, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(arguments[0], "--workdir", "w", *arguments[1:], message=message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "--from", "tflyte", "x", "--output", "o"), "format 'tflyte' does not exist; did you mean tflite?"),
        (("convert", "--from", "tflite", "x.tflite", "--output", "o"), "x.tflite"),
        (("evaluate", "--preset", "resnet50_v2_imagnet"), "did you mean resnet50_v2_imagenet?"),
        (
            ("predict", "--camera", "0", "--output", "o", "--preset", "some/folder"),
            "some/folder does not exist; expected",
        ),
    ],
)
def test_a_mistake_with_a_pretrained_network_is_reported_in_one_line(fails, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(*arguments, message=message)
    assert list(tmp_path.iterdir()) == []


ADDRESS = "gs://bucket/folder"


@pytest.fixture
def without_storage(monkeypatch):
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--config", "quickstart", "--workdir", ADDRESS),
        ("train", "--config", "quickstart", "--config.data.data_dir=gs://bucket", "--workdir", "w"),
        ("train", "--config", "quickstart", "--config.train.init_from=gs://bucket/run", "--workdir", "w"),
        ("evaluate", "--workdir", ADDRESS),
        ("evaluate", "--preset", ADDRESS),
        ("predict", "image.jpg", "--output", ADDRESS),
        ("predict", ADDRESS, "--output", "masks"),
        ("data", "prepare", "folder", "--source", ".", "--data-dir", ADDRESS),
        ("data", "check", "folder", "--data-dir", ADDRESS),
        ("convert", "--from", "tflite", "x", "--output", ADDRESS),
        ("export", "--to", "onnx", "--output", ADDRESS),
        ("demo", "--preset", ADDRESS),
        ("demo", "--workdir", ADDRESS),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]),
)
def test_addresses_of_buckets_name_the_extra_and_fill_no_local_folder(
    run, arguments, tmp_path, monkeypatch, without_storage
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code in (1, 2), out, len(err)) == (True, "", 1), err
    assert "needs the package gcsfs; install the extra: pip install 'deeplab_jax[gcs]'" in err[0]
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(("gs", "bucket"))] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--config", f"{ADDRESS}/config.py", "--workdir", "w"), "is in a bucket, but this has to be"),
        (
            ("train", "--config", "quickstart", "--workdir", "w", "--log-file", ADDRESS),
            "is in a bucket, but this has to be",
        ),
        (("evaluate", "--preset", "x", "--json", ADDRESS), "is in a bucket, but this has to be"),
        (("predict", "https://host/image.jpg", "--output", "masks"), "is an address, but only files, folders and"),
        (("data", "prepare", "folder", "--source", ADDRESS), "is in a bucket, but this has to be"),
        (("data", "show", "folder", "--output", ADDRESS), "is in a bucket, but this has to be"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-2:]) if isinstance(arguments, tuple) else "",
)
def test_other_addresses_are_refused(run, arguments, message, tmp_path, monkeypatch, without_storage):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code in (1, 2), out, len(err)) == (True, "", 1), err
    assert message in err[0]
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(("gs", "http", "bucket"))] == []


def test_the_data_folder_of_the_environment_can_be_an_address(fails, tmp_path, monkeypatch, without_storage):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPLAB_JAX_DATA", ADDRESS)
    fails("data", "prepare", "folder", "--source", ".", message="needs the package gcsfs")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_exits_with_130(run, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run_command", interrupted)
    code, _, err = run(*TRAIN)
    assert (code, err) == (
        130, ["deeplab-jax: interrupted; run the same command again to resume from the newest checkpoint"],
    )  # fmt: skip
    assert run("presets").err == ["deeplab-jax: interrupted"]


def test_preemption_exits_with_75(run, monkeypatch):
    def preempted(*_, **__):
        raise Preempted("stopped by SIGTERM at step 3 of 9, which is saved in runs/x")

    monkeypatch.setattr(main, "run_command", preempted)
    code, _, err = run(*TRAIN)
    assert code == 75
    assert err == [
        "deeplab-jax: stopped by SIGTERM at step 3 of 9, which is saved in runs/x; run the same command again to resume"
    ]
