"""The network is found in the checkpoints that training scripts write, and nothing in them is executed."""

import numpy as np
import pytest

from deeplab_jax.errors import UserError
from deeplab_jax.pretrained.readers.torch_file import read_torch_file
from tests.pretrained.readers.torch_writer import Name, Object, Tensor, save

ARRAYS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bn.bias": np.float32([1, 2])}
OPTIMIZER = {
    "state": {0: {"step": Tensor(np.asarray(3.0, np.float32)), "exp_avg": Tensor(np.zeros((2, 3), np.float32))}},
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
}
ARGUMENTS = Object(Name("argparse", "Namespace"), (), {"lr": 0.1, "data_path": "/data"})
SCORE = Object(
    Name("numpy.core.multiarray", "scalar"), (Object(Name("numpy", "dtype"), ("f8", False, True)), b"\0" * 8)
)


def state_dict(prefix: str = "", scale: float = 1) -> dict:
    return {f"{prefix}{name}": Tensor(scale * array) for name, array in ARRAYS.items()}


CHECKPOINTS = {
    "the weights alone": state_dict(),
    "DataParallel": state_dict("module."),
    "torch.compile": state_dict("_orig_mod."),
    "compiled and distributed": state_dict("module._orig_mod."),
    "PyTorch's tutorial": {
        "epoch": 3,
        "model_state_dict": state_dict(),
        "optimizer_state_dict": OPTIMIZER,
        "loss": 0.3,
    },
    "PyTorch's ImageNet example": {
        "epoch": 3,
        "state_dict": state_dict("module."),
        "optimizer": OPTIMIZER,
        "best": SCORE,
    },
    "torchvision's references": {"model": state_dict(), "optimizer": OPTIMIZER, "args": ARGUMENTS, "epoch": 3},
    "Lightning": {
        "epoch": 3,
        "state_dict": state_dict("model."),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": SCORE}},
        "hyper_parameters": Object(Name("lightning.fabric.utilities", "AttributeDict"), (), {"lr": 0.1}),
        "optimizer_states": [OPTIMIZER],
    },
    "a key of its own": {"net_g": state_dict("generator."), "acc": 1.0},
    "averaged beside plain weights": {
        "model": state_dict("module."),
        "model_ema": {**state_dict("module.", scale=2), "n_averaged": Tensor(np.asarray(3))},
    },
    "averaged weights": {"n_averaged": Tensor(np.asarray(3)), **state_dict("module.")},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_network_in_a_training_checkpoint_is_read(tmp_path, kind, protocol):
    arrays = read_torch_file(save(tmp_path / "a.ckpt", CHECKPOINTS[kind], protocol=protocol))
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_layers_of_a_sequential_keep_their_numbers(tmp_path):
    tensor = Tensor(np.zeros(1, np.float32))
    assert set(read_torch_file(save(tmp_path / "a.pth", {"0.weight": tensor, "0.bias": tensor}))) == {
        "0.weight",
        "0.bias",
    }


def test_names_of_countless_components_take_no_time(tmp_path):
    """Removing them one by one would copy a terabyte."""
    name = "a." * 1_000_000 + "weight"
    ((read, _),) = read_torch_file(save(tmp_path / "a.pth", {name: Tensor(np.zeros(1, np.float32))})).items()
    assert read.endswith("a.a.weight")


def test_several_networks_are_listed(tmp_path):
    path = save(tmp_path / "gan.pth", {"generator": state_dict(), "critic": state_dict()})
    with pytest.raises(UserError, match="gan.pth .* has 2 state dicts \\('generator', 'critic'\\); save one of them"):
        read_torch_file(path)


@pytest.mark.parametrize("key", ["model", "epoch"])
def test_a_pickled_network_object_is_refused_by_its_name(tmp_path, key):
    path = save(tmp_path / "a.pth", {"epoch": 3, key: Object(Name("nets", "UNet"), (), {"depth": 5})})
    with pytest.raises(
        UserError, match="a.pth needs 'nets.UNet', which could run code, so it is refused; ask its author"
    ):
        read_torch_file(path)


def test_calls_beside_the_network_do_nothing(tmp_path):
    marker = tmp_path / "it_ran"
    call = Object(Name("os", "system"), (f"touch {marker}",))
    arrays = read_torch_file(save(tmp_path / "a.pth", {"model": state_dict(), "note": call}))
    assert set(arrays) == set(ARRAYS)
    assert not marker.exists()
