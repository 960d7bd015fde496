"""The package: light imports, its version, and the direction of its imports."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from PIL import Image

import deeplab_jax

ROOT = pathlib.Path(__file__).parents[1]


def run_python(program: str, *arguments: str, timeout: int = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def modules_after(statement: str) -> set[str]:
    """Returns the top-level modules that a fresh interpreter has imported after a statement."""
    done = run_python(f"{statement}\nimport sys; print('modules:', *sorted({{m.split('.')[0] for m in sys.modules}}))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_imports_nothing_heavy():
    # Heavy modules are checked by name: import times depend on the load of the machine.
    assert not modules_after("import deeplab_jax") & {
        "jax", "flax", "optax", "orbax", "grain", "cv2", "matplotlib", "tensorflow_datasets", "numpy", "scipy",
    }  # fmt: skip


def test_prediction_imports_no_plots_no_data_pipeline_and_no_checkpoints():
    modules = modules_after("import deeplab_jax.cli.main, deeplab_jax.inference.predictor, deeplab_jax.workdir.layout")
    assert "jax" in modules
    assert not modules & {
        "optax", "orbax", "grain", "matplotlib", "tensorflow_datasets", "tensorboardX", "tensorflow", "torch",
    }  # fmt: skip


_WITHOUT_PEERS = """
import importlib.machinery
import sys

PEERS = ("tensorflow", "torch", "keras")

class Refuse:
    # Fails the import of a peer, but not a check whether it is installed.
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in PEERS else None

    def create_module(self, spec):
        raise ImportError(f"{spec.name} must not be imported")

    def exec_module(self, module):
        raise NotImplementedError

sys.meta_path.insert(0, Refuse())
for name in PEERS:
    try:
        __import__(name)
    except ImportError:
        print(name, "raises")
from deeplab_jax.cli import main as cli
import json
for command in json.loads(sys.argv[1]):
    try:
        cli.main(command)
    except SystemExit as done:
        assert done.code == 0, (command[0], done.code)
print("not imported:", *[name for name in PEERS if name not in sys.modules])
"""


def test_prepare_train_evaluate_and_predict_never_import_another_framework(
    own_folder, tiny_arguments, compilation_cache, tmp_path
):
    workdir, data_dir = str(tmp_path / "run"), str(tmp_path / "data")
    Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(tmp_path / "a.png")
    data = ["--config.data.name=folder", f"--config.data.data_dir={data_dir}", "--config.log.tensorboard=True"]
    commands = [
        ["data", "prepare", "folder", "--source", str(own_folder), "--data-dir", data_dir],
        ["train", "--workdir", workdir, *tiny_arguments, *data],
        ["evaluate", "--workdir", workdir],
        ["predict", str(tmp_path / "a.png"), "--workdir", workdir, "--output", str(tmp_path / "out")],
    ]
    done = run_python(_WITHOUT_PEERS, json.dumps(commands), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[:3] == ["tensorflow raises", "torch raises", "keras raises"]
    assert lines[-1] == "not imported: tensorflow torch keras"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2
    with Image.open(tmp_path / "out" / "a_mask.png") as mask:
        assert mask.size == (40, 30)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_version_equals_that_of_the_installed_package():
    assert importlib.metadata.version("deeplab_jax") == deeplab_jax.__version__


def test_the_import_contract_names_every_module_once():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = [name.strip() for layer in contract["layers"] for name in layer.replace("|", ":").split(":")]
    package = ROOT / "deeplab_jax"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert sorted(named) == sorted(f"deeplab_jax.{name}" for name in modules - {"__init__", "__main__"})


def test_imports_point_one_way():
    linter = shutil.which("lint-imports", path=os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.defpath]))
    if linter is None:
        pytest.skip("import-linter is not installed (it is in the extra dev)")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout
