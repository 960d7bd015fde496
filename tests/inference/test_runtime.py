"""Networks in other runtimes than XLA: which one is used, where exported files are kept, and the same labels."""

import collections
import importlib.util
import os
import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import data, ops, pretrained
from deeplab_jax.errors import UserError
from deeplab_jax.inference import export_cache, runtime_choice
from deeplab_jax.inference import runtime as runtime_lib
from deeplab_jax.inference.export_cache import NetworkIdentity
from deeplab_jax.inference.predictor import Predictor
from deeplab_jax.models import build_model
from tests.conftest import scene
from tests.support import exports

SIZE = (33, 47)


class EagerRuntime:
    """A runtime whose file is the name of a network: XLA computes it. It counts what it is asked for."""

    name = "onnxruntime"
    networks = {}

    def __init__(self, name: str = "onnxruntime", delay: float = 0.0):
        self.name, self.delay, self.calls = name, delay, collections.Counter()

    def is_installed(self):
        return True

    def check_installed(self):
        self.calls["check"] += 1

    def version(self):
        return "1.0"

    def export(self, model, variables, size):
        assert model.ops == ops.XLA  # the formats have none of the operations for CPUs
        self.calls["export"] += 1
        variables = jax.tree.map(jnp.asarray, variables)
        apply = jax.jit(lambda images: model.apply(variables, images, train=False)[1]["logits"])
        key = f"{self.name} {len(self.networks)}"
        self.networks[key] = size, apply
        return key.encode()

    def load(self, content, *, threads):
        assert threads == runtime_lib.usable_cpus()
        size, apply = self.networks[content.decode()]

        def run(image):
            assert image.shape == (1, *size, image.shape[-1])
            self.calls["run"] += 1
            return np.asarray(apply(image.astype(np.float32)))

        return run


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder of exported networks."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    return tmp_path / "programs" / "exported"


@pytest.fixture
def eager(cache, monkeypatch) -> EagerRuntime:
    """The only runtime other than XLA."""
    eager = EagerRuntime()
    monkeypatch.setattr(runtime_choice, "find_runtime", lambda name: eager)
    return eager


@pytest.fixture(scope="module")
def network() -> pretrained.PretrainedNetwork:
    return exports.network(**exports.TINY_RESNET)


@pytest.fixture
def identity(network) -> NetworkIdentity:
    return NetworkIdentity(build_model(network.model, 6), network.variables)


def photo(height: int, width: int, seed: int = 3) -> np.ndarray:
    image, _ = scene(seed, 40, 56)
    return data.resize_image(image, (height, width))


def make_config(network, **values):
    config = pretrained.preset_config(network)
    config.eval.protocol = "squeeze"
    config.data.image_size = SIZE
    config.unlock()
    config.update_from_flattened_dict(values)
    return config


# ---- The same predictions ----


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, {"scales": (0.75, 1.0), "flip": True, "classes": [0, 2, 5]}),
        ({"eval.protocol": "whole", "eval.image_size": (40, 49)}, {"window": (32, 32)}),
        ({"eval.protocol": "keep_ratio", "eval.scale_to": (32, 64)}, {"flip": True}),
        ({"eval.protocol": "windows", "eval.window": (32, 32), "eval.window_stride": (24, 24)}, {"flip": True}),
    ],
    ids=["views", "window", "ratio", "windows"],
)
def test_predictions_equal_those_of_xla(network, eager, values, options):
    config = make_config(network, **values)
    xla = Predictor.from_network(network, config, **options)
    other = Predictor.from_network(network, config, runtime="onnxruntime", **options)
    image = photo(45, 60)
    expected, found = (predictor(image, confidence=True, probabilities=True) for predictor in (xla, other))
    assert eager.calls["run"] > 0
    assert repr(other) == repr(xla)[:-1] + ", runtime=onnxruntime)"
    assert len(np.unique(expected.label_map)) > 1
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    # Programs are split in other places, so that sums are rounded in another order.
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)


def test_many_images_are_computed_one_by_one_on_all_devices(network, eager):
    config = make_config(network)
    images = [photo(45, 60, seed) for seed in range(5)]
    xla = Predictor.from_network(network, config)
    other = Predictor.from_network(network, config, runtime="onnxruntime", batch_size=2)
    for image, result in zip(images, other.map(images), strict=True):
        np.testing.assert_array_equal(result.label_map, xla(image).label_map)
    # Two batches of two, and the last image alone: no batch is filled up for the eight devices of the tests.
    assert eager.calls == {"check": 1, "export": 1, "run": 5}


def test_smoothed_videos_equal_those_of_xla(network, eager):
    frames = [photo(45, 60, seed) for seed in range(3)]
    labels = []
    for runtime in ("xla", "onnxruntime"):
        label = Predictor.from_network(network, make_config(network), runtime=runtime).start_video(smoothing=0.5)
        labels.append([label(frame) for frame in frames])
    np.testing.assert_array_equal(*labels)


def test_other_variables_are_exported_again(network, eager):
    predictor = Predictor.from_network(network, make_config(network), runtime="onnxruntime")
    image = photo(45, 60)
    before = predictor(image).label_map
    changed = predictor.with_variables(jax.tree.map(lambda leaf: jnp.asarray(-leaf), dict(network.variables)))
    assert not np.array_equal(changed(image).label_map, before)
    np.testing.assert_array_equal(predictor(image).label_map, before)
    assert eager.calls["export"] == 2


def test_a_predictor_with_other_variables_keeps_its_upsampling(network, eager):
    predictor = Predictor.from_network(network, make_config(network), runtime="onnxruntime", upsample="labels")
    other = predictor.with_variables(predictor._variables)
    with pytest.raises(UserError, match="^upsample=labels gives labels alone"):
        other(photo(45, 60), confidence=True)


# ---- Files ----


def test_a_network_is_exported_once_per_size_and_digest(identity, cache):
    runtime = EagerRuntime()
    first = export_cache.exported(runtime, identity, SIZE)
    again = NetworkIdentity(identity.model, jax.tree.map(np.array, identity.variables))
    assert export_cache.exported(runtime, again, SIZE) == first
    assert export_cache.is_exported(runtime, again, SIZE)
    assert runtime.calls["export"] == 1
    assert not export_cache.is_exported(runtime, identity, (33, 48))
    assert not export_cache.is_exported(EagerRuntime("litert"), identity, SIZE)
    one = next(iter(jax.tree.leaves(again.variables)))
    one.flat[0] += 1e-3
    assert not export_cache.is_exported(runtime, NetworkIdentity(identity.model, again.variables), SIZE)
    rounded = identity.model.clone(align_corners=not identity.model.align_corners)
    assert not export_cache.is_exported(runtime, NetworkIdentity(rounded, identity.variables), SIZE)
    # The operations for CPUs compute the same function.
    on_cpu = identity.model.clone(ops=ops.select("cpu"), remat="units")
    assert export_cache.is_exported(runtime, NetworkIdentity(on_cpu, identity.variables), SIZE)


def test_a_damaged_file_is_replaced_with_one_line(identity, cache, caplog):
    runtime = EagerRuntime()
    export_cache.exported(runtime, identity, SIZE)
    (path,) = cache.glob("*.onnxruntime")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], b"x" + whole[1:]):
        path.write_bytes(damaged)
        caplog.clear()
        export_cache.exported(runtime, identity, SIZE)
        (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert line == f"{path} is damaged; writing it again"
        assert export_cache.exported(runtime, identity, SIZE) == path.read_bytes()[:-32]
    assert runtime.calls["export"] == 4


def test_a_folder_that_cannot_be_written_costs_time_only(identity, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    runtime = EagerRuntime()
    assert export_cache.exported(runtime, identity, SIZE)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith(f"cannot write {tmp_path / 'file' / 'exported'}")


def test_an_empty_variable_turns_the_cache_off(identity, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("DEEPLAB_JAX_CACHE", str(tmp_path))
    runtime = EagerRuntime()
    for _ in range(2):
        export_cache.exported(runtime, identity, SIZE)
    assert runtime.calls["export"] == 2
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    export_cache.exported(runtime, identity, SIZE)
    assert list(tmp_path.glob("exported/*.onnxruntime"))


def test_the_files_that_were_used_last_stay(identity, cache, monkeypatch):
    runtime = EagerRuntime()
    monkeypatch.setattr(export_cache, "_MOST_BYTES", 100)  # two files
    for width in (40, 41):
        export_cache.exported(runtime, identity, (33, width))
    for path in cache.glob("*.onnxruntime"):
        os.utime(path, (1, 1))  # long ago
    for width in (40, 42):  # 40 is used again before 42 needs room
        export_cache.exported(runtime, identity, (33, width))
    assert {path.name.split("-")[1] for path in cache.glob("*.onnxruntime")} == {"33x40", "33x42"}


def test_of_two_that_need_a_file_one_exports_and_the_other_waits(identity, cache):
    class SlowRuntime(EagerRuntime):
        def export(self, model, variables, size):
            time.sleep(0.3)
            return super().export(model, variables, size)

    runtime, together = SlowRuntime(), threading.Barrier(2)

    def export(_):
        together.wait()  # a lock of the operating system is the same between threads as between processes
        return export_cache.exported(runtime, identity, SIZE)

    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(export, range(2))
    assert first == second
    assert runtime.calls["export"] == 1


def test_a_backbone_of_the_user_is_identified_by_its_program(identity, cache, monkeypatch):
    own = identity.digest
    monkeypatch.setattr(NetworkIdentity, "_is_own_code", property(lambda self: False))
    lowered = NetworkIdentity(identity.model, identity.variables)
    assert lowered.digest != own
    assert lowered.digest == NetworkIdentity(identity.model, identity.variables).digest


# ---- The choice ----


def test_unknown_and_unsupported_runtimes_are_refused(network, eager):
    config = make_config(network)
    with pytest.raises(UserError, match="^runtime 'onxruntime' does not exist; did you mean onnxruntime\\?$"):
        Predictor.from_network(network, config, runtime="onxruntime")
    config.train.compute_dtype = "bfloat16"
    with pytest.raises(UserError, match="^runtime=litert computes in float32, but train.compute_dtype is bfloat16; "):
        Predictor.from_network(network, config, runtime="litert")
    assert Predictor.from_network(network, config, runtime="auto")._network is None
    assert not eager.calls


def test_accelerators_use_xla(network, eager, monkeypatch):
    monkeypatch.setattr(runtime_choice, "platform_of", lambda variables: "gpu")
    model = build_model(network.model, 6)
    with pytest.raises(UserError, match="^runtime=litert computes on the CPU, but the device is a gpu; "):
        runtime_choice.make_network("litert", model, network.variables)
    assert runtime_choice.make_network("auto", model, network.variables) is None


@pytest.mark.parametrize("name", ["litert", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(network, monkeypatch, name):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in MODULES else find_spec(name))
    message = f"^runtime={name} needs the package {MODULES[name == 'onnxruntime']}; install the extra: pip install "
    with pytest.raises(UserError, match=message + "'deeplab_jax\\[runtimes\\]'$"):
        Predictor.from_network(network, make_config(network), runtime=name)
    predictor = Predictor.from_network(network, make_config(network), runtime="auto")
    assert predictor._network is None  # XLA, in the programs that it compiles for `runtime="xla"`


MODULES = ("ai_edge_litert", "onnxruntime")


class NamedRuntime(EagerRuntime):
    """A runtime whose result is its name."""

    def export(self, model, variables, size):
        self.calls["export"] += 1
        return self.name.encode()

    def load(self, content, *, threads):
        return lambda image: np.array(content.decode())


def automatic(identity, monkeypatch, seconds: dict[str, float], *, patience: float = 0.0):
    """An automatic network and its runtimes, with other times than those that are measured."""
    runtimes = [NamedRuntime(name) for name in seconds if name != "xla"]
    monkeypatch.setattr(runtime_choice.AutomaticNetwork, "_run_xla", lambda self, image: np.array("xla"))
    monkeypatch.setattr(runtime_choice, "_median_seconds", lambda runs, image: {name: seconds[name] for name in runs})
    return runtime_choice.AutomaticNetwork(runtimes, identity, patience=patience), runtimes


IMAGE = np.zeros((1, *SIZE, 3), np.uint8)
TIMES = {"xla": 0.03, "litert": 0.02, "onnxruntime": 0.025}


def results(network, count: int) -> list[str]:
    return [str(network.run(SIZE)(IMAGE)) for _ in range(count)]


def test_xla_begins_and_the_fastest_continues(identity, cache, monkeypatch, caplog):
    caplog.set_level("INFO", "deeplab_jax")
    network, (litert, other) = automatic(identity, monkeypatch, TIMES)
    assert results(network, 1) == ["xla"]
    assert not litert.calls  # the first image includes compiling, so it says nothing
    assert results(network, 3) == ["xla", "litert", "litert"]
    assert litert.calls["export"] == other.calls["export"] == 1
    assert "Images of 33x47 pixels: xla 30.0 ms, litert 20.0 ms, onnxruntime 25.0 ms; using litert" in caplog.messages
    # The next process begins with it.
    again, runtimes = automatic(identity, monkeypatch, TIMES)
    assert results(again, 2) == ["litert", "litert"]
    assert [runtime.calls["export"] for runtime in runtimes] == [0, 0]


def test_a_short_job_exports_nothing(identity, cache, monkeypatch):
    network, runtimes = automatic(identity, monkeypatch, TIMES, patience=60.0)
    assert results(network, 5) == ["xla"] * 5
    assert [runtime.calls for runtime in runtimes] == [{}, {}]
    assert not list(cache.glob("*"))


@pytest.mark.parametrize("litert", [0.028, 0.04])
def test_xla_stays_if_it_is_hardly_slower(identity, cache, monkeypatch, litert):
    for _ in range(2):  # measured, then known
        network, (runtime,) = automatic(identity, monkeypatch, {"xla": 0.03, "litert": litert})
        assert results(network, 4) == ["xla"] * 4
    assert runtime.calls["export"] == 0


def test_a_known_choice_whose_file_is_gone_begins_again(identity, cache, monkeypatch):
    network, _ = automatic(identity, monkeypatch, TIMES)
    assert results(network, 3)[-1] == "litert"
    for path in cache.glob("*.litert"):
        path.unlink()
    network, (litert, _) = automatic(identity, monkeypatch, TIMES, patience=60.0)
    assert results(network, 3) == ["xla"] * 3
    assert not litert.calls


def test_a_runtime_that_cannot_export_the_network_is_left_out(identity, cache, monkeypatch, caplog):
    network, (litert, _) = automatic(identity, monkeypatch, TIMES)

    def export(*_):
        raise UserError("the operation sort of this network cannot be translated")

    monkeypatch.setattr(litert, "export", export)
    assert results(network, 3) == ["xla", "xla", "onnxruntime"]
    assert "the operation sort of this network cannot be translated" in caplog.messages


def test_runtimes_are_measured_in_turns():
    order = []
    runs = {name: lambda image, name=name: order.append(name) for name in ("xla", "litert")}
    seconds = runtime_choice._median_seconds(runs, IMAGE)
    assert seconds.keys() == runs.keys()
    assert order == ["xla", "litert"] * (len(order) // 2)
    assert len(order) >= 10
