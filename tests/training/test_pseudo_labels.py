"""Pseudo labels: their threshold, their loss, CutMix, and steps that learn from labeled and unlabeled images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import losses
from deeplab_jax.config import base_config
from deeplab_jax.parallel import mesh as mesh_lib
from deeplab_jax.parallel import sharding
from deeplab_jax.training import pseudo_labels
from deeplab_jax.training.pseudo_labels import PseudoLabels
from tests.training.test_step import CLASSES, SIZE, assert_close, float64, make_toy_step

THRESHOLD = 0.4  # four classes; logits of a first state are nearly equal, so tests make them larger
OPTIONS = PseudoLabels(threshold=THRESHOLD, weight=0.5, cut_mix=True)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def random_logits(size=4, scale=2.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(size, SIZE, SIZE, CLASSES))


def make_batch(labeled=4, unlabeled=8, seed=0):
    rng = np.random.default_rng(seed)

    def images(size):
        return rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8)

    label = rng.integers(0, CLASSES, (labeled, SIZE, SIZE), dtype=np.uint8)
    label[0, 4:] = 255  # parts of the batch have other numbers of labeled pixels
    exists = np.ones((unlabeled, SIZE, SIZE), bool)
    exists[1, 15:] = False
    truth = rng.integers(0, CLASSES, (unlabeled, SIZE, SIZE), dtype=np.uint8)
    truth[3] = 255
    return {
        "image": images(labeled),
        "label": label,
        "unlabeled_weak": images(unlabeled),
        "unlabeled_strong": images(unlabeled),
        "unlabeled_exists": exists,
        "unlabeled_label": np.where(exists, truth, 255).astype(np.uint8),
        "unlabeled_box": np.array(
            [[2, 3, 20, 21], [0, 0, 0, 0], [0, 0, 5, 24], [7, 7, 8, 8]] * (unlabeled // 4), np.int32
        ),
    }


def on_device(batch):
    return {name: jnp.asarray(array) for name, array in batch.items()}


def make_step(**options):
    """The toy network, a state whose predictions differ from pixel to pixel, and the step."""
    model, state, step = make_toy_step("float64", **({"unlabeled": OPTIONS, "weight_decay": 0.0} | options))
    state = float64(state)
    larger = jax.tree.map(lambda kernel: 200 * kernel, state.params["classifier"])
    return model, state.replace(params=state.params | {"classifier": larger}), step


def paste(array, boxes):
    """CutMix image by image: the pixels of each box come from the other image of the pair."""
    mixed = array.copy()
    for i, (top, left, bottom, right) in enumerate(boxes):
        mixed[i, top:bottom, left:right] = array[i ^ 1, top:bottom, left:right]
    return mixed


def softmax(logits):
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@pytest.mark.parametrize("threshold", [0.3, 0.95, 1.0])
def test_a_pixel_has_a_pseudo_label_if_its_probability_reaches_the_threshold(threshold):
    logits = random_logits()
    logits[0, 0, 0], logits[0, 0, 1] = (0, 800, 0, 0), (np.nan, 1, 1, 1)
    probabilities = softmax(logits)
    expected = np.where(probabilities.max(-1) >= threshold, logits.argmax(-1), 255)
    found = pseudo_labels.find_pseudo_labels(jnp.asarray(logits), threshold)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert (found[0, 0, 0], found[0, 0, 1]) == (1, 255)
    assert 0 < (expected != 255).mean() < 1


def test_cut_mix_pastes_images_labels_and_masks_at_the_same_place():
    batch = make_batch()
    for name in ("unlabeled_strong", "unlabeled_exists", "unlabeled_label"):
        mixed = pseudo_labels.cut_mix(jnp.asarray(batch[name]), jnp.asarray(batch["unlabeled_box"]))
        np.testing.assert_array_equal(mixed, paste(batch[name], batch["unlabeled_box"]))
        assert mixed.dtype == batch[name].dtype


@pytest.mark.parametrize("parts", [1, 2])
def test_pseudo_labels_follow_their_pixels(parts):
    """A teacher whose class is the color of the pixel: labels of equal views fit everywhere."""
    batch = make_batch()
    batch["unlabeled_strong"] = batch["unlabeled_weak"]

    def predict(images):
        return jax.nn.one_hot(images[..., 0] % CLASSES, CLASSES) * 20.0

    mixed = pseudo_labels.add_pseudo_labels(on_device(batch), predict, OPTIONS, num_parts=parts)
    np.testing.assert_array_equal(mixed["pseudo_label"], mixed["unlabeled_strong"][..., 0] % CLASSES)
    assert (mixed["unlabeled_strong"] != batch["unlabeled_weak"]).any()
    assert mixed.keys() == {"image", "label", "unlabeled_strong", "unlabeled_exists", "unlabeled_label", "pseudo_label"}


def test_the_report_of_strong_views_equals_a_count_pixel_by_pixel():
    batch, logits = make_batch(), random_logits(8)
    pseudo = np.asarray(pseudo_labels.find_pseudo_labels(jnp.asarray(random_logits(8, seed=1)), 0.6))
    found = pseudo_labels.report(jnp.asarray(logits), on_device(batch | {"pseudo_label": pseudo}))
    exists, truth = batch["unlabeled_exists"], batch["unlabeled_label"]
    counted = exists & (pseudo != 255)
    log_probabilities = np.log(softmax(logits))
    picked = np.take_along_axis(log_probabilities, np.where(counted, pseudo, 0)[..., None].astype(int), -1)[..., 0]
    known = counted & (truth != 255)
    expected = {
        "loss_sum": -picked[counted].sum(),
        "pixels": exists.sum(),
        "confident_pixels": counted.sum(),
        "labeled_pixels": known.sum(),
        "correct_pixels": (known & (pseudo == truth)).sum(),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-12)
    scores = pseudo_labels.scores(expected)
    assert scores["unlabeled_loss"] == pytest.approx(expected["loss_sum"] / exists.sum())
    assert scores["confident_share"] == counted.sum() / exists.sum()
    assert scores["pseudo_label_accuracy"] == expected["correct_pixels"] / known.sum()
    assert "pseudo_label_accuracy" not in pseudo_labels.scores(expected | {"labeled_pixels": 0, "correct_pixels": 0})


def reference_step(model, state, batch, loss_fn, *, teacher):
    """One step of gradient descent on the loss as the module states it, in plain operations. Pseudo labels are NumPy
    arrays, so they have no gradient.

    Returns the parameters, the batch statistics, and the loss of the labeled and that of the unlabeled images.
    """
    logits, _ = jax.jit(functools.partial(model.apply, train=False))(teacher, batch["unlabeled_weak"])
    pseudo = np.where(softmax(np.asarray(logits)).max(-1) >= THRESHOLD, logits.argmax(-1), 255)
    strong, exists, pseudo = (
        paste(np.asarray(array), batch["unlabeled_box"])
        for array in (batch["unlabeled_strong"], batch["unlabeled_exists"], pseudo)
    )
    counted = jnp.asarray((pseudo != 255) & exists)

    def mean_loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        both = np.concatenate([batch["image"], strong])
        (logits, _), updates = model.apply(variables, both, train=True, mutable=["batch_stats"])
        labeled, unlabeled = logits[: len(batch["image"])], logits[len(batch["image"]) :]
        total, count = loss_fn(labeled, jnp.asarray(batch["label"]))
        picked = jnp.take_along_axis(jax.nn.log_softmax(unlabeled), jnp.where(counted, pseudo, 0)[..., None], -1)[
            ..., 0
        ]
        unlabeled_loss = -jnp.where(counted, picked, 0).sum() / exists.sum()
        return total / count + OPTIONS.weight * unlabeled_loss, (updates["batch_stats"], total / count, unlabeled_loss)

    gradients, (batch_stats, *values) = jax.jit(jax.grad(mean_loss, has_aux=True))(state.params)
    params = jax.tree.map(lambda param, gradient: param - 0.05 * gradient, state.params, gradients)
    return params, batch_stats, values


@pytest.mark.parametrize("labeled", [4, 8])
@pytest.mark.parametrize("terms", ["cross_entropy", "cross_entropy + 0.5 * dice"])
def test_a_step_descends_the_loss_of_both_kinds_of_images(labeled, terms):
    config = base_config()
    config.loss.update(terms=terms, class_weights=(1.0, 2.0, 0.5, 3.0))
    loss_fn = losses.make_loss(config.loss, num_classes=CLASSES)
    model, state, step = make_step(loss_fn=loss_fn)
    batch = make_batch(labeled)
    after, report = jax.jit(step)(state, batch)
    params, batch_stats, (loss, unlabeled_loss) = reference_step(model, state, batch, loss_fn, teacher=state.variables)
    jax.tree.map(assert_close, params, after.params)
    jax.tree.map(assert_close, batch_stats, after.batch_stats)
    assert float(report["loss_sum"] / report["loss_count"]) == pytest.approx(float(loss), rel=1e-12)
    found = report["unlabeled"]
    assert float(found["loss_sum"] / found["pixels"]) == pytest.approx(float(unlabeled_loss), rel=1e-12)
    assert 0 < found["confident_pixels"] < found["pixels"]
    assert int(after.examples_seen) == labeled


def test_the_average_can_teach():
    teacher = PseudoLabels("average", THRESHOLD, OPTIONS.weight, cut_mix=True)
    model, state, step = make_step(unlabeled=teacher, ema_rate=0.1)
    rng = np.random.default_rng(1)
    averages = jax.tree.map(lambda leaf: leaf * rng.uniform(0.5, 1.5, leaf.shape), state.ema_variables)
    classifier = jax.tree.map(lambda kernel: 200 * kernel, averages["params"]["classifier"])
    averages["params"] = averages["params"] | {"classifier": classifier}
    state, batch = state.replace(ema_variables=averages), make_batch()
    after, report = jax.jit(step)(state, batch)
    loss_fn = losses.make_loss(base_config().loss, num_classes=CLASSES)
    params, _, (_, loss) = reference_step(model, state, batch, loss_fn, teacher=averages)
    jax.tree.map(assert_close, params, after.params)
    of_student = reference_step(model, state, batch, loss_fn, teacher=state.variables)[2][1]
    assert abs(float(of_student) - float(loss)) > 1e-3  # the two teachers differ


@pytest.mark.parametrize("terms", ["cross_entropy", "cross_entropy + 0.5 * dice"])
def test_an_accumulated_step_equals_the_unsplit_one(terms):
    config = base_config()
    config.loss.update(terms=terms)
    results = []
    for parts in (1, 2):
        loss_fn = losses.make_loss(config.loss, num_classes=CLASSES)
        _, state, step = make_step(freeze_norm_statistics=True, accumulate_steps=parts, loss_fn=loss_fn)
        results.append(jax.device_get(jax.jit(step)(state, make_batch())))
    jax.tree.map(assert_close, *results)


def test_a_batch_without_confident_pixels_is_a_step_on_the_labeled_images_alone():
    """With statistics that do not move: BatchNorm sees both kinds of images."""
    certain = PseudoLabels(threshold=1.0, weight=5.0)
    _, state, step = make_step(unlabeled=certain, freeze_norm_statistics=True)
    _, _, alone = make_step(unlabeled=None, freeze_norm_statistics=True)
    batch = make_batch()
    after, report = jax.jit(step)(state, batch)
    expected, _ = jax.jit(alone)(state, {name: batch[name] for name in ("image", "label")})
    assert int(report["unlabeled"]["confident_pixels"]) == 0
    jax.tree.map(assert_close, expected.params, after.params)


def test_a_batch_without_labels_still_learns_from_pseudo_labels():
    _, state, step = make_step()
    batch = make_batch()
    batch["label"] = np.full_like(batch["label"], 255)
    after, report = jax.jit(step)(state, batch)
    assert (int(report["loss_count"]), bool(np.isfinite(report["gradient_norm"]))) == (0, True)
    assert np.abs(after.params["classifier"]["kernel"] - state.params["classifier"]["kernel"]).max() > 1e-6


@pytest.mark.parametrize(("labeled", "unlabeled"), [(4, 4), (2, 6), (6, 4), (1, 3)])
def test_joined_batches_are_separated_again(labeled, unlabeled):
    one, other = np.arange(labeled * 2).reshape(-1, 2), 100 + np.arange(unlabeled * 2).reshape(-1, 2)
    both = pseudo_labels.join(jnp.asarray(one), jnp.asarray(other))
    assert sorted(both.ravel().tolist()) == sorted([*one.ravel(), *other.ravel()])
    for found, expected in zip(pseudo_labels.separate(both, labeled), (one, other), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"data": 1, "fsdp": 2}, {"data": 2, "spatial": 2}])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_the_same_on_all_meshes(sizes, parts):
    options = {"freeze_norm_statistics": False, "accumulate_steps": parts}
    model, state, step = make_step(**options)
    batch = make_batch(labeled=4, unlabeled=8)
    expected = jax.device_get(jax.jit(step)(state, batch))
    config = base_config().mesh
    config.update(sizes)
    mesh = mesh_lib.make_mesh(config)
    shardings = sharding.state_shardings(state, mesh, fsdp_min_size=64)
    _, _, step = make_step(**options, shardings=shardings)
    step = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)))
    found = jax.device_get(step(jax.device_put(state, shardings), sharding.to_global(batch, mesh)))
    jax.tree.map(assert_close, expected, found)
    for name, count in expected[1]["unlabeled"].items():
        if name != "loss_sum":
            assert found[1]["unlabeled"][name] == count


def test_a_loss_that_is_not_finite_changes_nothing_if_steps_are_skipped():
    _, state, step = make_step(skip_nonfinite=True, freeze_norm_statistics=True)
    kernel = np.full_like(state.params["classifier"]["kernel"], np.inf)
    broken = state.replace(params=state.params | {"classifier": {**state.params["classifier"], "kernel": kernel}})
    after, report = jax.jit(step)(broken, make_batch())
    assert not np.isfinite(report["gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, broken.params, after.params)
