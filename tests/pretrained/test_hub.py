"""Networks on the Hugging Face Hub, against a server on this machine that speaks its API."""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import deeplab_jax
from deeplab_jax.cli import main
from deeplab_jax.demo.networks import find_networks
from deeplab_jax.errors import UserError
from deeplab_jax.labels import LabelSet
from deeplab_jax.pretrained import PretrainedNetwork, Provenance, Score, bundle, hub, load, model_fields, push_to_hub
from deeplab_jax.pretrained.network import model_config, variable_shapes
from deeplab_jax.pretrained.provenance import NVIDIA_LICENSE, TRAINING_RUN
from tests.pretrained.importers.torch_networks import Golden
from tests.support.hub_server import TOKEN, Repository, serving

pytest.importorskip("huggingface_hub")

huggingface_hub = hub.import_hub()

# huggingface_hub 2.4 calls its HTTP client with an old argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LABELS = LabelSet.from_names(["ground", "crop", "weed"])
FACTS = Provenance(
    author="Ada",
    data=("fields",),
    date="2026-01-02",
    license="MIT",
    origin=TRAINING_RUN,
    scores=(Score(metric="mean_iou", value=0.5, data="fields", split="val", protocol="9 images, one scale"),),
)


@pytest.fixture(scope="module")
def network():
    """A network of random values that was never trained."""
    model = model_config(backbone="mobilenet_v2", width_multiplier=0.25, aspp="none", decoder="none")
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in variable_shapes(model, 3).items()}
    return PretrainedNetwork(model, traverse_util.unflatten_dict(flat, sep="/"), LABELS, provenance=FACTS)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server, as HF_ENDPOINT names it to a process that has not imported huggingface_hub yet; and no cache."""
    with serving() as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks the LFS protocol
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits longer before each further attempt."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


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


def test_a_folder_keeps_its_edited_card_and_brings_its_report(server, network, tmp_path):
    folder = tmp_path / "net"
    bundle.save(network, folder)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: mit", "language: en") + "\nWritten by hand.\n")
    (folder / "report" / "images").mkdir(parents=True)
    (folder / "report" / "index.html").write_text("<p>.5</p>")
    (folder / "report" / "images" / "a.png").write_bytes(b"png")
    (folder / "report" / ".secret").write_text("no")
    (folder / "report" / "passwd").symlink_to("/etc/passwd")
    (folder / "notes.txt").write_text("not part of the format")
    push_to_hub(folder, "ada/fields", private=True)
    repository = server.repositories["ada/fields"]
    assert repository.private
    files = repository.commits[repository.branches["main"]]
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "report/index.html", "report/images/a.png",
    }  # fmt: skip
    pushed = huggingface_hub.ModelCard(files["README.md"].decode())
    assert (pushed.data.license, pushed.data.language, pushed.data.library_name) == ("mit", "en", "deeplab_jax")
    assert "Written by hand." in pushed.text
    assert "hf://ada/fields" in pushed.text
    assert "OWNER/NAME" not in pushed.text


def test_a_model_in_memory_is_pushed(server, network):
    push_to_hub(network, "ada/source")
    model, variables = deeplab_jax.from_pretrained("hf://ada/source")
    push_to_hub(
        model, "ada/copy", variables=variables, label_set=LABELS, protocol="squeeze", image_size=(32, 48), license="MIT"
    )
    again = load("hf://ada/copy")
    assert (again.protocol, again.image_size, again.provenance.license) == ("squeeze", (32, 48), "MIT")
    assert_same_variables(again, network)


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


def test_metadata_that_the_hub_refuses_is_named(server, network):
    server.rejects_metadata = '"license" must be one of the list'
    with pytest.raises(UserError, match='^hf://ada/fields: Invalid metadata in README.md. - "license" must be one of'):
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


@pytest.mark.parametrize("request_", [("POST", "create$"), ("PUT", "^/lfs/"), ("POST", "/commit/")])
def test_an_upload_that_breaks_off_leaves_nothing_half_done(server, network, no_waiting, request_):
    server.breaks_off = request_
    with pytest.raises(
        UserError, match=f"^hf://ada/fields: {server.url} cannot be reached, or the connection broke off"
    ):
        push_to_hub(network, "ada/fields")
    assert all(len(repository.commits) == 1 for repository in server.repositories.values())  # that of its creation
    server.breaks_off = None
    push_to_hub(network, "ada/fields")
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


# ---- Licenses ----


def with_facts(network, **facts):
    return dataclasses.replace(network, provenance=Provenance(**facts))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"license": NVIDIA_LICENSE, "origin": "preset mit_b0"},
            "does not allow to publish copies; .* from preset mit_b0",
        ),
        ({}, "^the license of these weights is unknown .* name their license with --license"),
        ({"origin": "file x.pth in the format torchvision"}, "they are from file x.pth in the format torchvision"),
        ({"origin": TRAINING_RUN, "base": "net"}, "^the training started from net, whose license is unknown; "),
        (
            {"origin": TRAINING_RUN, "base": "mit_b0", "base_license": NVIDIA_LICENSE},
            "^the training started from mit_b0, whose license is NVIDIA Source Code License",
        ),
    ],
)
def test_weights_that_may_not_be_published_stay_here(server, network, facts, message):
    with pytest.raises(UserError, match=message):
        push_to_hub(with_facts(network, **facts), "ada/fields")
    if facts.get("license") is None:
        push_to_hub(with_facts(network, **facts), "ada/fields", license="CC-BY-4.0")
        assert load("hf://ada/fields").provenance.license == "CC-BY-4.0"
    else:  # a name on the command line does not change what its publisher allows
        with pytest.raises(UserError, match=message):
            push_to_hub(with_facts(network, **facts), "ada/fields", license="MIT")
        assert not server.requests


@pytest.mark.parametrize("facts", [{}, {"base": "resnet50", "base_license": "Apache-2.0"}])
def test_an_own_network_needs_no_license(server, network, facts):
    push_to_hub(with_facts(network, origin=TRAINING_RUN, **facts), "ada/fields")
    files = server.repositories["ada/fields"].commits[server.repositories["ada/fields"].branches["main"]]
    assert "license" not in huggingface_hub.ModelCard(files["README.md"].decode()).data.to_dict()


@pytest.mark.parametrize("name", ["fields", "a/b/c", "a/..", "-a/b", "a/b--c", ""])
def test_a_repository_of_another_form_is_named(network, name):
    with pytest.raises(UserError, match="is not the name of a repository, owner/name$"):
        push_to_hub(network, name)


def test_the_digest_of_the_server_is_that_of_the_file(server, network):
    push_to_hub(network, "ada/fields")
    assert all(hashlib.sha256(content).hexdigest() == digest for digest, content in server.blobs.items())
