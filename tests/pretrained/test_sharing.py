"""Pushing networks to the Hugging Face Hub: files, model card, licenses, and uploads that fail."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

import deeplab_jax
from deeplab_jax.errors import UserError
from deeplab_jax.pretrained import Provenance, bundle, hub, load, push_to_hub
from deeplab_jax.pretrained.provenance import NVIDIA_LICENSE, TRAINING_RUN
from tests.support.hub_facts import LABELS

pytest.importorskip("huggingface_hub")

huggingface_hub = hub.import_hub()

# huggingface_hub 2.4 calls its HTTP client with an old argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def assert_same_variables(one, other):
    assert jax.tree.structure(one.variables) == jax.tree.structure(other.variables)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one.variables, other.variables)))


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


def test_metadata_that_the_hub_refuses_is_named(server, network):
    server.rejects_metadata = '"license" must be one of the list'
    with pytest.raises(UserError, match='^hf://ada/fields: Invalid metadata in README.md. - "license" must be one of'):
        push_to_hub(network, "ada/fields")


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
