"""Parity with KerasCV's training: the pyramid, the optimizer and the metrics alone, then whole steps of the guide.

Every step starts from KerasCV's variables and momentum: in float32 a network of this depth amplifies rounding, and even
KerasCV on JAX and KerasCV on TensorFlow diverge within five steps (`benchmarks/kerascv_parity.py`).
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax import ops
from deeplab_jax.config import load_config
from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import VOC
from deeplab_jax.models import PARTS, build_model
from deeplab_jax.models.aspp import ASPP
from deeplab_jax.models.layers import Layers
from deeplab_jax.training import optimizer
from tests.goldens import formula
from tests.support import kerascv_bridge

GOLDENS = pathlib.Path(__file__).parent / "goldens"
CLASSES = kerascv_bridge.CLASSES
STEPS = 5
FLOAT64_STEPS = (0, 4)


@pytest.fixture(scope="module")
def parts():
    with np.load(GOLDENS / "kerascv_parts.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def bridge():
    with np.load(GOLDENS / "kerascv_forward.npz") as arrays:
        return kerascv_bridge.Bridge(json.loads(str(arrays["layout"])))


def training_batch(step):
    """As make_kerascv.py makes it."""
    labels = np.floor(formula.uniform(f"labels{step}", (2, 64, 64), 0, CLASSES + 1)).astype(np.uint8)
    labels[labels == CLASSES] = 255
    return formula.images(f"image{step}", (2, 64, 64, 3)), labels


def confusion(labels, predictions):
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    return np.asarray(
        metrics.confusion_matrix(labels, predictions, num_classes=CLASSES, ignored_pixels="background"), np.int64
    )


def test_the_pyramid_where_every_tap_is_live(parts):
    """40x40 features: at rate 18 the outer taps of 22 rows and columns lie inside."""
    layers = Layers(
        padding="same_upper",
        kernel_init="glorot_uniform",
        norm_epsilon=1e-3,
        norm_decay=0.99,
        use_running_average=True,
        dtype=np.dtype("float32"),
        ops=ops.select("cpu"),
    )
    options = {"separable": False, "image_pooling": True, "dropout": 0.0, "deterministic": True}
    options |= {"projection_size": 1, "separable_norm": True, "output_stride": 16}
    options |= {"pooling_window": (), "pooling_stride": (1, 1), "resize": ops.resize_bilinear}
    pyramid = ASPP(layers=layers, channels=4, rates=(6, 12, 18), **options)
    ours = [f"branch_{name}" for name in ("1x1", "atrous1", "atrous2", "atrous3", "pooling")]
    leaves = {"kernel": "kernel", "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    variables = {"params": {}, "batch_stats": {}}
    for path, shape in json.loads(str(parts["aspp/variables"])):
        _, sequential, layer, leaf = path.split("/")
        number, kind = int(sequential.partition("_")[2] or 0), "conv" if layer.startswith("conv") else "norm"
        collection = variables["batch_stats" if leaf.startswith("moving") else "params"]
        if number < 5:
            module = collection.setdefault(ours[number], {}).setdefault(kind, {})
        else:
            module = collection.setdefault({"conv": "projection", "norm": "projection_norm"}[kind], {})
        module[leaves[leaf]] = formula.weight(path, shape, is_norm=False)
    output = jax.jit(pyramid.apply)(variables, formula.uniform("features", (1, 40, 40, 8), -1, 1))
    pixels = np.linspace(0, 39, 14).astype(int)
    np.testing.assert_allclose(output[:, pixels][:, :, pixels], parts["aspp/output"], rtol=1e-5, atol=1e-6)


def test_the_optimizer_on_given_gradients(parts):
    """Cosine rate, clipping of each variable (some gradients are longer than 10), momentum, decay of all variables."""
    config = load_config("kerascv_guide").optimizer
    config.learning_rate, config.weight_decay = 0.1, 0.05
    rule, _ = optimizer.make(config, 8, parts=PARTS)
    shapes = json.loads(str(parts["optimizer/shapes"]))
    params = {"classifier": {name: formula.uniform(f"variable/{name}", shape, -1, 1) for name, shape in shapes.items()}}
    state = rule.init(params)
    norms = []
    for step in range(STEPS):
        gradients = {name: formula.uniform(f"gradient{step}/{name}", shape, -2, 2) for name, shape in shapes.items()}
        norms += [np.linalg.norm(gradient) for gradient in gradients.values()]
        updates, state = jax.jit(rule.update)({"classifier": gradients}, state, params)
        params = optax.apply_updates(params, updates)
        momentums = optax.tree.get(state, "trace")["classifier"]
        for name in shapes:
            theirs = parts[f"optimizer/{step}/{name}"], parts[f"optimizer/{step}/{name}/momentum"]
            np.testing.assert_allclose(params["classifier"][name], theirs[0], rtol=0, atol=1e-6)
            np.testing.assert_allclose(momentums[name], theirs[1], rtol=0, atol=1e-6)
    assert min(norms) < 10 < max(norms)


@pytest.mark.parametrize("case", range(4))
def test_mean_iou_and_accuracy_equal_keras(parts, case):
    """With absent classes and ignored pixels, over two updates."""
    present = 2 + 5 * case
    labels = np.floor(formula.uniform(f"labels{case}", (4, 24, 24), 0, present + 1)).astype(np.uint8)
    labels[labels == present] = 255
    predictions = np.argmax(formula.uniform(f"scores{case}", (4, 24, 24, CLASSES))[..., :present], axis=-1)
    total = confusion(labels[:2], predictions[:2]) + confusion(labels[2:], predictions[2:])
    scores = metrics.scores(total, VOC.class_names)
    assert sum(value is None for value in scores["per_class_iou"].values()) == CLASSES - present
    # Keras divides in float32 and adds 1e-7 to the union
    np.testing.assert_allclose((scores["mean_iou"], scores["pixel_accuracy"]), parts[f"metric/{case}"], rtol=1e-6)


def projection(path, value):
    """As make_kerascv.py projects."""
    return float(np.vdot(value, direction(path, np.shape(value))))


@functools.cache
def direction(path, shape):
    return formula.uniform(f"projection/{path}", shape, -(3**0.5), 3**0.5).astype(np.float64)


def golden_step(bridge, step_function, step, dtype):
    """The state behind a step of ours from the formula's variables, and its scores and confusion matrix."""
    variables = {
        path: formula.weight(path, shape, is_norm=False, variant=str(step)) for path, shape in bridge.shapes.items()
    }
    momentums = {
        path: formula.uniform(f"momentum{step}/{path}", shape, -1e-3, 1e-3) for path, shape in bridge.shapes.items()
    }
    before = kerascv_bridge.train_state(bridge.tree(variables, dtype), bridge.tree(momentums, dtype), 400 * step)
    images, labels = training_batch(step)
    after, report = jax.device_get(step_function(before, {"image": images.astype(dtype), "label": labels}))
    loss, matrix = report["loss_sum"] / report["loss_count"], report["confusion"].astype(np.int64)
    return before, after, loss, metrics.scores(matrix, VOC.class_names), matrix


def assert_projections(ours, golden, *, scale, tolerance):
    """Relative to the length of each variable's value: a projection moves by as much as the value does."""
    errors = {path: abs(projection(path, ours[path]) - theirs) / scale[path] for path, theirs in golden.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.2e}"


def norms(values):
    return {path: np.linalg.norm(value.astype(np.float64)) for path, value in values.items()}


def test_float64_steps_equal_kerascvs(bridge):
    """Loss, gradients, momentum, variables and batch statistics where rounding is no matter: KerasCV in float64."""
    with np.load(GOLDENS / "kerascv_training64.npz") as arrays:
        golden = dict(arrays)
    trained, statistics = (json.loads(str(golden[name])) for name in ("trained", "statistics_paths"))
    with jax.enable_x64(True):
        run = jax.jit(kerascv_bridge.guide_step("float64"))
        for row, step in enumerate(FLOAT64_STEPS):
            before, after, loss, scores, matrix = golden_step(bridge, run, step, np.float64)
            np.testing.assert_allclose(loss, golden["scores"][row][0], rtol=1e-12)
            # Keras divides in float32
            np.testing.assert_allclose(
                (scores["mean_iou"], scores["pixel_accuracy"]), golden["scores"][row][1:], rtol=1e-6
            )
            np.testing.assert_array_equal(matrix, confusion(training_batch(step)[1], golden["predictions"][row]))

            gradients = bridge.values({"params": kerascv_bridge.gradients_of(after)})
            lengths = dict(zip(trained, golden["gradient_norms"][row], strict=True))
            # A bias that only BatchNorms see has a gradient of zero; what is computed for it is rounding.
            zero = {path for path in trained if lengths[path] < 1e-12}
            assert zero
            assert all(path.endswith("/bias") and np.abs(gradients[path]).max() < 1e-12 for path in zero)
            own, live = norms(gradients), [path for path in trained if path not in zero]
            np.testing.assert_allclose([own[path] for path in live], [lengths[path] for path in live], rtol=1e-9)
            names = ("gradients", "momentums", "updates")
            projections = {name: dict(zip(trained, golden[name][row], strict=True)) for name in names}
            assert_projections(
                gradients, {path: projections["gradients"][path] for path in live}, scale=lengths, tolerance=1e-9
            )
            momentums = bridge.values({"params": kerascv_bridge.momentums_of(after)})
            assert_projections(momentums, projections["momentums"], scale=norms(momentums), tolerance=1e-9)
            old, new = bridge.values({"params": before.params}), bridge.values({"params": after.params})
            updates = {path: new[path] - old[path] for path in trained}
            assert_projections(updates, projections["updates"], scale=norms(updates), tolerance=1e-9)
            averages = bridge.values({"batch_stats": after.batch_stats})
            theirs = dict(zip(statistics, golden["statistics"][row], strict=True))
            assert_projections(averages, theirs, scale=norms(averages), tolerance=1e-9)


@pytest.mark.slow  # the float64 steps are the stricter equality
def test_float32_steps_equal_kerascvs(bridge):
    with np.load(GOLDENS / "kerascv_training.npz") as arrays:
        golden = dict(arrays)
    trained, statistics = (json.loads(str(golden[name])) for name in ("trained", "statistics_paths"))
    run = jax.jit(kerascv_bridge.guide_step())
    for step in range(STEPS):
        _, after, loss, scores, matrix = golden_step(bridge, run, step, np.float32)
        assert_scores(loss, matrix, golden["scores"][step], training_batch(step)[1], golden["predictions"][step])
        gradients = bridge.values({"params": kerascv_bridge.gradients_of(after)})
        own, lengths = norms(gradients), dict(zip(trained, golden["gradient_norms"][step], strict=True))
        assert_lengths([own[path] / lengths[path] for path in trained if not path.endswith("/bias")])
        averages = bridge.values({"batch_stats": after.batch_stats})
        theirs = dict(zip(statistics, golden["statistics"][step], strict=True))
        assert_projections(averages, theirs, scale=norms(averages), tolerance=2e-5)


def assert_scores(loss, matrix, theirs, labels, predictions):
    """Loss, accuracy and mean IoU of a float32 step, given KerasCV's and the classes it predicted.

    In training mode either framework's probabilities are 8e-5 from their float64 values (the network amplifies
    rounding), so that a few pixels whose two best classes lie nearer to each other change sides. On KerasCV's own
    predictions the scores are the same.
    """
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-5)
    expected = confusion(labels, predictions)
    scores = metrics.scores(expected, VOC.class_names)
    np.testing.assert_allclose((scores["mean_iou"], scores["pixel_accuracy"]), theirs[1:], rtol=1e-5)
    assert np.abs(matrix - expected).sum() // 2 <= 12  # of 8,192; 0 to 2 where this was written


def assert_lengths(ratios):
    """Ours to KerasCV's lengths of gradients, in float32; up to .013 off where this was written, the median .001."""
    errors = np.abs(np.asarray(ratios) - 1)
    assert errors.max() <= 0.05
    assert np.median(errors) <= 0.005


def keras_python() -> str:
    """A Python that has KerasCV: its numbers come from a process of its own, since it needs TensorFlow."""
    python = os.environ.get("DEEPLAB_JAX_KERAS_PYTHON", sys.executable)
    program = "import importlib.util as util; raise SystemExit(util.find_spec('keras_cv') is None)"
    if subprocess.run([python, "-c", program], check=False).returncode:
        pytest.skip(f"{python} has no keras_cv (set DEEPLAB_JAX_KERAS_PYTHON to a Python that has it)")
    return python


@pytest.fixture(scope="module")
def keras():
    """Runs a command of make_kerascv.py and returns the folder it wrote, which is large and deleted afterwards."""
    python = keras_python()
    with tempfile.TemporaryDirectory() as folder:

        def run(command):
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
            output = pathlib.Path(folder) / command
            output.mkdir()
            script = str(GOLDENS / "make_kerascv.py")
            subprocess.run(
                [python, script, command, str(output)], check=True, env=environment | {"KERAS_BACKEND": "jax"}
            )
            return output

        yield run


@pytest.mark.peers
def test_all_probabilities_are_kerascvs_live(bridge, keras):
    theirs = np.load(keras("probabilities") / "probabilities.npz")
    variables = bridge.tree({path: formula.weight(path, shape, is_norm=False) for path, shape in bridge.shapes.items()})
    model = build_model(load_config("kerascv_guide").model, CLASSES)
    run = jax.jit(lambda variables, images: jax.nn.softmax(model.apply(variables, images, train=False)[0], axis=-1))
    for size in (64, 256, 640):
        ours = run(variables, formula.images(f"image{size}", (1, size, size, 3)))
        difference = np.abs(ours - theirs[str(size)]).max()
        assert difference <= 1e-5


def split(arrays, prefix):
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


@pytest.mark.peers
@pytest.mark.slow
def test_a_trajectory_is_kerascvs_live(bridge, keras):
    """Five steps of KerasCV on end; before each ours takes over its variables and momentum."""
    folder = keras("trajectory")
    run = jax.jit(kerascv_bridge.guide_step())
    rule, _ = kerascv_bridge.guide_rule()
    update = jax.jit(rule.update)
    for step in range(STEPS):
        with np.load(folder / f"step{step}.npz") as arrays, np.load(folder / f"step{step + 1}.npz") as following:
            variables, momentums = bridge.tree(split(arrays, "variable/")), bridge.tree(split(arrays, "momentum/"))
            gradients = split(arrays, "gradient/")
            new_variables = bridge.tree(split(following, "variable/"))
            new_momentums = bridge.tree(split(following, "momentum/"))
            batch = {"image": arrays["images"], "label": arrays["labels"]}
            scores, predictions = arrays["scores"], arrays["predictions"]
        before = kerascv_bridge.train_state(variables, momentums, step)
        after, report = jax.device_get(run(before, batch))
        matrix = report["confusion"].astype(np.int64)
        assert_scores(report["loss_sum"] / report["loss_count"], matrix, scores, batch["label"], predictions)
        # Features deep inside are 6e-5 from their float64 values in either framework, and 1% of a batch's moments
        # enters the averages: 2.8e-6 where this was written.
        assert largest_difference(after.batch_stats, new_variables["batch_stats"]) <= 1e-5
        compare_gradients(bridge.values({"params": kerascv_bridge.gradients_of(after)}), gradients)

        # the update rule alone, on KerasCV's gradients
        state = kerascv_bridge.set_optimizer_state(rule, variables["params"], momentums["params"], step)
        updates, state = update(bridge.tree(gradients)["params"], state, variables["params"])
        for ours, theirs in (
            (optax.apply_updates(variables["params"], updates), new_variables["params"]),
            (optax.tree.get(state, "trace"), new_momentums["params"]),
        ):
            assert largest_difference(ours, theirs) <= 1e-6


def largest_difference(ours, theirs):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, theirs)))


def compare_gradients(ours, theirs):
    """Direction and length of each variable's gradient, in float32.

    Left out are the biases of convolutions: only BatchNorms see them, so that their gradients are rounding alone.
    """
    cosines, ratios = [], []
    for path in ours:
        if path.endswith("/bias"):
            assert max(np.abs(ours[path]).max(), np.abs(theirs[path]).max()) < 1e-4
            continue
        a, b = (value[path].astype(np.float64).ravel() for value in (ours, theirs))
        lengths = np.linalg.norm(a), np.linalg.norm(b)
        cosines.append(a @ b / np.prod(lengths))
        ratios.append(lengths[0] / lengths[1])
    assert min(cosines) >= 0.995  # .9986 where this was written, the median .9997
    assert_lengths(ratios)
