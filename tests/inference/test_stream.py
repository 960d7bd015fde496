"""Batches of many images: their order, their sizes, what they wait for, and what they overlap with."""

import itertools
import threading

import numpy as np
import pytest

from deeplab_jax.data import decoder_warnings
from deeplab_jax.errors import UserError
from deeplab_jax.inference import stream
from deeplab_jax.inference.computation import Computation, Fitted
from deeplab_jax.inference.overlap import map_ahead
from deeplab_jax.inference.prediction import Prediction
from deeplab_jax.labels import VOC

SMALL, WIDE = (8, 8), (8, 80)


class Recorder(Computation):
    """Labels an image with its own first value, and records what happens."""

    def __init__(self, num_devices: int = 1, platform: str = "gpu"):
        self.events, self._devices, self._platform = [], num_devices, platform

    @property
    def platform(self) -> str:
        return self._platform

    @property
    def num_devices(self) -> int:
        return self._devices

    def fit(self, image):
        return Fitted((image,), (image.shape[:2],), image.shape[:2])

    def start(self, batch, kind, *, size=1):
        ids = [int(fitted.views[0][0, 0, 0]) for fitted in batch]
        self.events.append(("start", ids, size))

        def finish():
            self.events.append(("finish", ids, size))
            return [(np.full(fitted.size, i, np.uint8), None, None) for i, fitted in zip(ids, batch, strict=True)]

        return finish

    def batches(self):
        return [(ids, size) for event, ids, size in self.events if event == "start"]


def labels_of(computation, sizes, *, batch_size, kind="labels"):
    """Streams images of these sizes, numbered; None stands for one that cannot be read."""

    def read(item):
        if item[1] is None:
            raise UserError(f"image {item[0]} is damaged")
        return np.full((*item[1], 3), item[0], np.uint8)

    label = stream.LabelStream(
        computation,
        lambda labels, *others: Prediction(labels, VOC),
        kind=kind,
        num_classes=21,
        batch_size=batch_size,
    )
    return label(enumerate(sizes), read)


def check(labeled, sizes):
    """Checks that each image has its own result, in order."""
    labeled = list(labeled)
    assert [each.item for each in labeled] == list(enumerate(sizes))
    for each in labeled:
        number, size = each.item
        if size is None:
            assert str(each.error) == f"image {number} is damaged"
        else:
            assert each.prediction.label_map.shape == size
            assert (each.prediction.label_map == number).all()


def test_images_of_one_shape_share_batches_and_keep_their_order():
    sizes = [SMALL, WIDE, SMALL, WIDE, SMALL, SMALL, WIDE, SMALL]
    computation = Recorder()
    check(labels_of(computation, sizes, batch_size=3), sizes)
    # The last two are fewer than a batch, which is filled up so that no other program is compiled.
    assert computation.batches() == [([0, 2, 4], 3), ([1, 3, 6], 3), ([5, 7], 3)]


def test_a_damaged_image_does_not_take_a_place_in_a_batch():
    sizes = [None, SMALL, SMALL, None, SMALL, SMALL, None]
    computation = Recorder()
    check(labels_of(computation, sizes, batch_size=2), sizes)
    assert computation.batches() == [([1, 2], 2), ([4, 5], 2)]


def test_devices_share_a_batch_and_a_few_images_are_not_filled_up_to_a_full_one():
    computation = Recorder(num_devices=4)
    check(labels_of(computation, [SMALL] * 11, batch_size=2), [SMALL] * 11)
    assert computation.batches() == [(list(range(8)), 8), ([8, 9, 10], 4)]


def test_an_image_of_a_rare_shape_does_not_wait_for_another():
    computation, read = Recorder(), []

    def sizes():
        for size in itertools.chain([WIDE], itertools.repeat(SMALL)):  # without end
            read.append(size)
            yield size

    first = next(labels_of(computation, sizes(), batch_size=4))
    assert first.item == (0, WIDE)
    assert len(read) < 100
    assert ([0], 1) in computation.batches()


def test_the_next_batch_is_started_before_the_result_of_the_last_one_is_awaited():
    computation = Recorder()
    check(labels_of(computation, [SMALL] * 6, batch_size=2), [SMALL] * 6)
    events = [(event, ids[0]) for event, ids, _ in computation.events]
    assert events == [("start", 0), ("start", 2), ("finish", 0), ("start", 4), ("finish", 2), ("finish", 4)]


def test_batches_are_as_large_as_memory_allows(monkeypatch):
    monkeypatch.setattr(stream, "_DEFAULT_VALUES", 2 * 64 * 64 * 5)  # input and result of five small images
    monkeypatch.setattr(stream, "MOST_VALUES", 2 * 64 * 64 * 7)
    size = (64, 64)

    def capacity(platform="gpu", **options):
        computation = Recorder(platform=platform)
        check(labels_of(computation, [size] * 40, **options), [size] * 40)
        return computation.batches()[0][1]

    assert capacity(batch_size=None, platform="cpu") == 1
    assert capacity(batch_size=None) == 5
    assert capacity(batch_size=None, kind="probabilities") == 1
    assert capacity(batch_size=6) == 6
    assert capacity(batch_size=9) == 7


def test_large_images_do_not_wait(monkeypatch):
    monkeypatch.setattr(stream, "MOST_VALUES", 3 * 64 * 64)
    computation = Recorder()
    labeled = labels_of(computation, [WIDE] + [(64, 64)] * 20, batch_size=8)
    assert next(labeled).item == (0, WIDE)
    assert len(computation.batches()) < 6


def test_the_caller_is_given_results_while_threads_work_ahead():
    second_began, first_used = threading.Event(), threading.Event()

    def work(item):
        if item == 1:
            second_began.set()
            assert first_used.wait(30)
        return item

    results = map_ahead(work, range(3), num_pixels=lambda item: 1, threads=2)
    assert next(results) == 0
    assert second_began.wait(30)
    first_used.set()
    assert list(results) == [1, 2]


@pytest.mark.parametrize(("pixels", "most"), [(1, 4), (2**25, 2), (2**27, 1)])
def test_the_number_of_results_in_memory_depends_on_their_size(pixels, most):
    begun, used = [], []

    def items():
        for item in range(20):
            begun.append(item)
            yield item

    for item in map_ahead(lambda item: item, items(), num_pixels=lambda item: pixels, threads=2):
        used.append(item)
        assert len(begun) - len(used) <= most
    assert used == list(range(20))


def test_an_error_is_raised_when_its_result_is_due():
    def work(item):
        if item == 2:
            raise UserError("two")
        return item

    results = map_ahead(work, range(5), num_pixels=lambda item: 1, threads=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UserError, match="two"):
        next(results)


def test_warnings_of_decoders_are_ignored_until_the_last_thread_is_done(recwarn):
    """The thread that begins second restores what it found: the filters of the first."""
    import warnings

    before = list(warnings.filters)
    first, second = decoder_warnings.ignore(), decoder_warnings.ignore()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("odd EXIF", UserWarning, stacklevel=1)
    assert not recwarn.list
    second.__exit__(None, None, None)
    assert warnings.filters == before
