"""Networks on the Hugging Face Hub, against a server on this machine that speaks its API."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.demo.networks import find_networks
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained import bundle, hub, load, model_fields, push_to_hub
from deeplab_jax.pretrained.provenance import NVIDIA_LICENSE
from tests.pretrained.importers.torch_networks import Golden
from tests.support.hub_facts import FACTS, LABELS
from tests.support.hub_server import TOKEN, Repository

pytest.importorskip("huggingface_hub")

huggingface_hub = hub.import_hub()

# huggingface_hub 2.4 calls its HTTP client with an old argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def publish(server, name, **files):
    """Puts a repository with these files on the server."""
    repository = server.repositories[name] = Repository()
    repository.commit("main", files)
    return repository


def assert_same_variables(one, other):
    assert jax.tree.structure(one.variables) == jax.tree.structure(other.variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one.variables, other.variables)))


# ---- The round trip ----


def test_a_pushed_network_is_loaded_bit_for_bit(server, network, caplog):
    caplog.set_level("INFO")
    address = push_to_hub(network, "ada/fields", message="First")
    repository = server.repositories["ada/fields"]
    commit = repository.branches["main"]
    assert address == f"hf://ada/fields@{commit}"
    assert (repository.private, repository.messages[commit]) == (False, "First")
    assert set(repository.commits[commit]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}

    again = load("hf://ada/fields")
    assert_same_variables(again, network)
    assert (again.model.to_dict(), again.label_set) == (network.model.to_dict(), LABELS)
    assert again.provenance == dataclasses.replace(FACTS, origin=address)
    assert f"hf://ada/fields is at commit {commit}" in caplog.messages
    model, variables = deeplab_jax.from_pretrained("hf://ada/fields")
    assert model.num_classes == 3
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, network.variables)))


def test_only_what_is_read_is_downloaded_and_only_once(server, network):
    push_to_hub(network, "ada/fields")
    server.requests.clear()
    load("hf://ada/fields")
    assert {path.rpartition("/")[2] for path in server.paths("GET", "/resolve/")} == {"config.json"}
    assert len(server.paths("GET", "^/lfs/")) == 1
    assert not server.paths("GET", "README")
    server.requests.clear()
    load("hf://ada/fields")
    assert not [method for method, _ in server.requests if method == "GET"]


def test_a_revision_names_a_branch_or_a_commit(server, network):
    first = push_to_hub(network, "ada/fields")
    other = dataclasses.replace(network, variables=jax.tree.map(lambda leaf: 2 * leaf, network.variables))
    second = push_to_hub(other, "ada/fields", revision="doubled")
    assert second.startswith("hf://ada/fields@")
    assert second != first
    assert_same_variables(load("hf://ada/fields"), network)
    assert_same_variables(load("hf://ada/fields@doubled"), other)
    assert_same_variables(load(first), network)
    assert_same_variables(load(second), other)


@pytest.mark.slow
def test_another_process_finds_the_server_by_hf_endpoint(server, network, tmp_path):
    bundle.save(network, tmp_path / "net")
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "deeplab_jax", "push", tmp_path / "net", "ada/fields", "--half"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    commit = server.repositories["ada/fields"].branches["main"]
    assert (
        done.stderr.splitlines()[-1] == f"Pushed to hf://ada/fields@{commit}; load it with `--preset hf://ada/fields`"
    )
    weights = len(server.repositories["ada/fields"].commits[commit]["model.safetensors"])
    assert weights < 0.6 * (tmp_path / "net" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "use",
    [
        deeplab_jax.from_pretrained,
        deeplab_jax.Predictor.from_pretrained,
        deeplab_jax.evaluate,
        model_fields,
        lambda address: find_networks([address])["fields"](),
    ],
    ids=["from_pretrained", "Predictor", "evaluate", "model_fields", "demo"],
)
def test_an_address_is_resolved_wherever_a_preset_is(server, monkeypatch, use):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="^hf://ada/fields does not exist, or it is private"):
        use("hf://ada/fields")


def test_a_predictor_is_created_from_an_address(server, network):
    push_to_hub(network, "ada/fields")
    assert deeplab_jax.Predictor.from_pretrained("hf://ada/fields").label_set == LABELS


# ---- Networks of other projects ----


@pytest.mark.parametrize(("owner", "license_name"), [("nvidia", NVIDIA_LICENSE), ("grace", "cc-by-4.0")])
def test_a_segformer_of_transformers_is_loaded_directly(server, owner, license_name):
    golden = Golden("transformers")
    arrays = {name: np.zeros(shape, np.float32) for name, shape in golden.shapes("saved_b0").items()}
    names = {str(number): f"thing {number}" for number in range(5)}
    repository = publish(
        server,
        f"{owner}/segformer",
        **{
            "config.json": json.dumps({"model_type": "segformer", "id2label": names}).encode(),
            "preprocessor_config.json": json.dumps({"size": 256}).encode(),
            "model.safetensors": safetensors.numpy.save(arrays),
            "tf_model.h5": b"the same weights for TensorFlow",
            "README.md": b"---\nlicense: cc-by-4.0\ndatasets:\n- scene_parse_150\n---\n# SegFormer\n",
        },
    )
    network = load(f"hf://{owner}/segformer")
    assert (network.model.backbone, network.model.head, network.image_size) == ("mit_b0", "segformer", (256, 256))
    assert network.label_set.class_names == tuple(names.values())
    facts = network.provenance
    assert (facts.author, facts.license, facts.data) == (owner, license_name, ("scene_parse_150",))
    assert facts.origin == f"hf://{owner}/segformer@{repository.branches['main']}"
    assert not server.paths("GET", "tf_model")
    with pytest.raises(UserError, match="has the format transformers; to import another file, name it"):
        hub.load(f"hf://{owner}/segformer", "deeplab_jax")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "is a model of transformers of type 'bert'; of those, only segformer can be loaded$"),
        (
            {"architecture": "resnet50", "pretrained_cfg": {}},
            r"timm \('resnet50'\); import it with `deeplab-jax convert --from timm hf://.*/model.safetensors --output",
        ),
        (
            {"encoder_name": "resnet34"},
            "segmentation_models.pytorch; import it with `deeplab-jax convert --from smp hf:",
        ),
        ({"registered_name": "keras_hub>X"}, "KerasHub; import it with .* --from kerashub hf://.*/model.weights.h5 "),
        ({"a": 1}, "is not a network of deeplab_jax: its config.json has another format$"),
    ],
)
def test_a_network_of_another_project_is_named_with_the_fix(server, config, message):
    publish(server, "grace/other", **{"config.json": json.dumps(config).encode(), "model.safetensors": b"weights"})
    with pytest.raises(UserError, match=message) as caught:
        load("hf://grace/other")
    assert str(caught.value).startswith("hf://grace/other@")
    assert not server.paths("GET", "^/lfs/")  # no weights are downloaded in vain


def test_a_repository_without_a_config_is_named(server):
    publish(server, "grace/other", **{"net.pth": b"weights"})
    with pytest.raises(
        UserError, match="^hf://grace/other has no config.json, .* --from FORMAT hf://grace/other/FILE`$"
    ):
        load("hf://grace/other")


def test_one_file_is_downloaded_for_convert(server):
    publish(server, "grace/other", **{"net.pth": b"weights"})
    assert hub.download_file("hf://grace/other/net.pth").read_bytes() == b"weights"
    with pytest.raises(UserError, match="^hf://grace/other has no file none.pth$"):
        hub.download_file("hf://grace/other/none.pth")
    with pytest.raises(UserError, match="names a file; import it with `deeplab-jax convert"):
        load("hf://grace/other/net.pth")


def test_convert_imports_a_file_of_the_hub(server, tmp_path):
    content = (pathlib.Path(__file__).parent / "readers" / "data" / "float.tflite").read_bytes()
    publish(server, "grace/mobile", **{"net/float.tflite": content})
    arguments = ["convert", "--from", "tflite", "hf://grace/mobile/net/float.tflite", "--output", str(tmp_path / "net")]
    with pytest.raises(SystemExit) as done:
        main.main(arguments)
    assert done.value.code == 0
    assert load(tmp_path / "net").provenance.origin == "hf://grace/mobile/net/float.tflite"


# ---- Errors ----


@pytest.mark.parametrize(
    "text", ["hf://", "hf://name", "hf://a/b@", "hf://a/../b", "hf://a/b/../../c", "hf://a b/c", "hf://a/b@x y"]
)
def test_an_address_of_another_form_is_named(text):
    with pytest.raises(UserError, match="is not an address of the form hf://owner/name or hf://owner/name@revision$"):
        load(text)


def test_what_the_hub_refuses_is_explained(server, network, monkeypatch):
    push_to_hub(network, "ada/fields", private=True)
    publish(server, "grace/gated", **{"config.json": b"{}"}).gated = True
    with pytest.raises(UserError, match="^hf://ada/fields has no revision 'v9'; choose a branch, a tag or a commit$"):
        load("hf://ada/fields@v9")
    with pytest.raises(UserError, match="^hf://grace/gated is gated: accept its terms at http.*/grace/gated, then run"):
        load("hf://grace/gated")
    with pytest.raises(
        UserError, match="^hf://grace/fields: .* no permission .*rights to create a model.*; run `hf auth"
    ):
        push_to_hub(network, "grace/fields")
    monkeypatch.delenv("HF_TOKEN")
    for name in ("ada/fields", "ada/none"):
        with pytest.raises(
            UserError, match=f"^hf://{name} does not exist, or it is private; .* run `hf auth login`, or"
        ):
            load(f"hf://{name}")
    with pytest.raises(
        UserError, match="^hf://ada/fields: only its owner can write to it; run `hf auth login`, or set"
    ):
        push_to_hub(network, "ada/fields")


@pytest.mark.parametrize("request_", [("HEAD", "/resolve/"), ("GET", "^/lfs/")])
def test_a_connection_that_breaks_off_is_one_line(server, network, no_waiting, request_):
    push_to_hub(network, "ada/fields")
    server.breaks_off = request_
    with pytest.raises(
        UserError, match=f"^hf://ada/fields: {server.url} cannot be reached, or the connection broke off"
    ):
        load("hf://ada/fields")
    server.breaks_off = None
    assert_same_variables(load("hf://ada/fields"), network)


def test_a_server_without_xet_storage_is_named(server, network, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(UserError, match="; for a server without Xet storage, set HF_HUB_DISABLE_XET=1$"):
        push_to_hub(network, "ada/fields")


def test_without_a_network_the_cache_is_used(server, network, no_waiting, monkeypatch):
    push_to_hub(network, "ada/fields")
    load("hf://ada/fields")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{nobody}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    with pytest.raises(UserError, match=f"^hf://ada/other: {nobody} cannot be reached, .* refused"):
        load("hf://ada/other")
    assert_same_variables(load("hf://ada/fields"), network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_same_variables(load("hf://ada/fields"), network)
    with pytest.raises(UserError, match="^hf://ada/other is not in the cache, and HF_HUB_OFFLINE forbids to download"):
        load("hf://ada/other")


def test_a_damaged_file_of_the_cache_is_named(server, network, tmp_path):
    push_to_hub(network, "ada/fields")
    load("hf://ada/fields")
    (weights,) = (tmp_path / "hub").rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    pathlib.Path(weights).write_bytes(content)
    with pytest.raises(UserError, match="model.safetensors is damaged: its checksum is not "):
        load("hf://ada/fields")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"^the Hugging Face Hub needs a package; run `pip install 'deeplab_jax\[hub\]'`$"
    ):
        load("hf://ada/fields")
