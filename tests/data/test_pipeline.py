"""The stream of training batches is a pure function of seed and position; evaluation sees every example once."""

import contextlib
import itertools
import multiprocessing
import re

import numpy as np
import pytest

from deeplab_jax import data
from deeplab_jax.config import base_config
from deeplab_jax.data import images
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import UserError
from deeplab_jax.labels import SYNTHETIC
from tests.conftest import make_folder

NUM_EXAMPLES = 10


class NumberedSource:
    """Every pixel of example i is i. Sizes alternate between the given ones."""

    name, split, label_set = "numbered", "train", SYNTHETIC

    def __init__(self, count=NUM_EXAMPLES, sizes=((6, 8),), encoded=False):
        self.count, self.sizes, self.encoded = count, sizes, encoded

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        height, width = self.sizes[index % len(self.sizes)]
        label = np.full((height, width), index % 6, np.uint8)
        label[:, 0] = 255  # tells left from right
        image = np.full((height, width, 3), index, np.uint8)
        if self.encoded:
            return {"image": b"damaged", "label": images.encode_mask(label), "id": f"number_{index}"}
        return {"image": image, "label": label, "id": f"number_{index}"}

    def largest_size(self):
        return tuple(int(extent) for extent in np.max(self.sizes, axis=0))


def config(**fields):
    made = base_config()
    made.data.update({"batch_size": 4, "image_size": (6, 8), **fields})
    made.model.output_stride = 1  # there is no network, so images may be tiny
    return made


def train(source, count, *, seed=0, fields=None, **options):
    """The first `count` batches."""
    with contextlib.closing(data.train_batches(source, config(**(fields or {})).data, seed=seed, **options)) as batches:
        return list(itertools.islice(batches, count))


def evaluate(source, *, made=None, batch_size=4, **options):
    made = made or config()
    with contextlib.closing(
        data.eval_batches(source, data.protocol_for(made), batch_size=batch_size, workers=made.data.workers, **options)
    ) as batches:
        return list(batches)


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def numbers(batches):
    """The numbers of the examples."""
    return [int(value) for batch in batches for value in batch["image"][:, 0, 0, 0]]


SCENES = {
    "image_size": (48, 40),
    "resize": "scale_crop",
    "short_side": 45,
    "cat_max_ratio": 0.75,
    "random_rotation": 20.0,
    "random_flip": "horizontal_and_vertical",
    "color_jitter": 0.2,
    "photometric_distortion": True,
    "random_blur": 1.0,
    "copy_paste_classes": (1, 2, 3),
}


def scenes():
    return data.open_source("synthetic", "train", num_examples=NUM_EXAMPLES, image_size=(48, 40))


# Training


def test_batches_have_the_shapes_and_dtypes_of_the_network():
    (batch,) = train(scenes(), 1, fields=SCENES)
    assert batch.keys() == {"image", "label", "id", "unreadable"}
    assert batch["image"].shape == (4, 48, 40, 3)
    assert batch["label"].shape == (4, 48, 40)
    assert batch["image"].dtype == batch["label"].dtype == np.uint8


def test_each_epoch_has_each_example_once_in_a_new_order():
    seen = numbers(train(NumberedSource(), 10))
    epochs = [seen[start : start + NUM_EXAMPLES] for start in range(0, 40, NUM_EXAMPLES)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_EXAMPLES))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_stream_is_a_function_of_the_seed():
    assert_equal(train(scenes(), 3, fields=SCENES), train(scenes(), 3, fields=SCENES))
    first, second = (np.array(numbers(train(NumberedSource(100), 50, seed=seed))) for seed in (0, 1))
    # Unrelated orders of 100 agree in one place an epoch; no shift of one stream is the other.
    assert all(np.mean(first == np.roll(second, shift)) < 0.2 for shift in range(-5, 6))
    scales = [
        np.array([image.std() for batch in train(scenes(), 5, seed=seed, fields=SCENES) for image in batch["image"]])
        for seed in (0, 1)
    ]
    assert not np.isin(scales[0], scales[1]).any()


def test_an_example_is_augmented_differently_in_every_epoch():
    batches = train(NumberedSource(1), 16, fields={"batch_size": 1, "random_flip": "horizontal"})
    flipped = {bool(batch["label"][0, 0, -1] == 255) for batch in batches}
    assert flipped == {False, True}


@pytest.mark.parametrize("examples_seen", [4, 8, 20, 36])
def test_a_run_continues_at_any_position(examples_seen):
    whole = train(scenes(), 12, fields=SCENES)
    rest = train(scenes(), 12 - examples_seen // 4, fields=SCENES, examples_seen=examples_seen)
    assert_equal(rest, whole[examples_seen // 4 :])


def test_a_run_continues_inside_a_batch():
    whole = numbers(train(NumberedSource(), 10))
    assert numbers(train(NumberedSource(), 5, examples_seen=7)) == whole[7:27]


@pytest.mark.parametrize("process_count", [2, 4])
def test_interleaved_processes_draw_the_same_as_one(process_count):
    for examples_seen in (0, 12):
        (whole, *_) = one = train(scenes(), 3, fields=SCENES, examples_seen=examples_seen)
        parts = [
            train(
                scenes(),
                3,
                fields=SCENES,
                examples_seen=examples_seen,
                process_index=index,
                process_count=process_count,
            )
            for index in range(process_count)
        ]
        assert parts[0][0]["image"].shape[0] == whole["image"].shape[0] // process_count
        for i, batch in enumerate(one):
            for name in ("image", "label"):
                # Example j of the global batch is example j // process_count of process j % process_count.
                together = np.stack([part[i][name] for part in parts], axis=1).reshape(batch[name].shape)
                np.testing.assert_array_equal(together, batch[name])


def test_classes_of_other_examples_are_pasted_into_half_of_the_examples():
    """Example i shows the number i and has class i % 6, so pixels with another number were pasted."""
    fields = {"batch_size": 48, "copy_paste_classes": (1, 2), "copy_paste_share": 0.5}
    pasted = 0
    for batch in train(NumberedSource(48), 10, fields=fields):
        for name, image, labels in zip(batch["id"], batch["image"][..., 0], batch["label"], strict=True):
            foreign = image != int(name.removeprefix("number_"))
            assert set(image[foreign] % 6) <= {1, 2}
            labeled = labels != 255
            np.testing.assert_array_equal(labels[labeled], image[labeled] % 6)
            assert labeled[foreign].all()
            pasted += foreign.any()
    # A third of the others have one of the classes: a sixth of 480, whose standard deviation is 8.
    assert 56 < pasted < 104


def test_pasted_classes_must_exist():
    with pytest.raises(UserError, match=r"^data\.copy_paste_classes=\(1, 6\) must be ids from 0 to 5"):
        train(NumberedSource(), 1, fields={"copy_paste_classes": (1, 6)})


def test_worker_processes_change_nothing(tmp_path):
    """Starting a worker takes seconds, so training uses two and evaluation one; both are compared with none."""
    prepare("folder", source=make_folder(tmp_path / "own"), data_dir=tmp_path)
    source = data.open_source("folder", "train", data_dir=tmp_path)
    fields = {
        "batch_size": 2,
        "image_size": (24, 32),
        "resize": "scale_crop",
        "photometric_distortion": True,
        "transform": "tests.support.own_transforms:shift",
    }
    alone = train(source, 5, fields=fields, examples_seen=2)
    assert_equal(train(source, 5, fields={**fields, "workers": 2}, examples_seen=2), alone)
    assert_equal(evaluate(source, made=config(workers=1), batch_size=3), evaluate(source, batch_size=3))


def test_a_damaged_example_is_named():
    with pytest.raises(UserError, match=r"the stored image of number_\d is damaged; prepare the data set again"):
        train(NumberedSource(encoded=True), 1)
    with pytest.raises(UserError, match=r"the stored image of number_\d is damaged"):
        evaluate(NumberedSource(encoded=True))


def test_a_damaged_file_is_named(tmp_path):
    folder = prepare("folder", source=make_folder(tmp_path / "own"), data_dir=tmp_path)
    (file,) = folder.glob("*train.array_record*")
    content = file.read_bytes()
    third_jpeg = [match.start() for match in re.finditer(rb"\xff\xd8\xff", content)][2]
    flipped = bytearray(content)
    flipped[third_jpeg + 100] ^= 0xFF
    for damaged, example in ((bytes(flipped), "2"), (content[: len(content) // 2], r"\d")):
        file.write_bytes(damaged)
        source = data.open_source("folder", "train", data_dir=tmp_path)
        message = rf"example {example} of folder/train cannot be read: .*; remove .* and prepare the data set again"
        with pytest.raises(UserError, match=message):
            train(source, 3)


class SomeUnreadable(NumberedSource):
    """Examples 3, 4 and 7 are damaged."""

    def __getitem__(self, index):
        if index in (3, 4, 7):
            raise UserError(f"example {index} is damaged")
        return super().__getitem__(index)


def test_an_unreadable_example_raises_unless_the_config_skips_it():
    with pytest.raises(UserError, match=r"^example [347] is damaged$"):
        train(SomeUnreadable(), 3)


def test_a_skipped_example_is_replaced_and_named():
    whole = train(NumberedSource(), 5)
    batches = train(SomeUnreadable(), 5, fields={"unreadable": "skip"})
    replacement = {3: 5, 4: 5, 7: 8}
    assert numbers(batches) == [replacement.get(number, number) for number in numbers(whole)]
    ids = [str(id) for batch in batches for id in batch["id"]]
    assert ids == [f"number_{number}" for number in numbers(batches)]
    named = [str(text) for batch in batches for text in batch["unreadable"]]
    assert named == [f"example {n} is damaged" if n in replacement else "" for n in numbers(whole)]
    # It depends on the position alone, so a resumed run makes the same replacements.
    assert_equal(train(SomeUnreadable(), 3, fields={"unreadable": "skip"}, examples_seen=8), batches[2:])


def test_many_unreadable_examples_in_a_row_raise():
    with pytest.raises(UserError, match="is damaged; prepare the data set again; nor can the next 9 examples"):
        train(NumberedSource(encoded=True), 1, fields={"unreadable": "skip"})


def test_a_dead_worker_does_not_hang_the_run():
    with contextlib.closing(data.train_batches(scenes(), config(workers=1, **SCENES).data, seed=0)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(UserError, match="^a data worker process died .*; run the same command again to continue"):
            list(itertools.islice(batches, 50))


# Evaluation


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_every_example_is_evaluated_once(process_count, count):
    source = NumberedSource(count)
    shares = [
        evaluate(source, batch_size=2, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    assert len({len(share) for share in shares}) == 1  # or one process would wait for the others for ever
    ids = [
        id
        for share in shares
        for batch in share
        for id, valid in zip(batch["id"], batch["valid"], strict=True)
        if valid
    ]
    assert sorted(ids) == sorted(f"number_{i}" for i in range(count))
    for share in shares:
        for batch in share:
            assert batch["image"].shape[0] == batch["label"].shape[0] == 2
            assert batch["valid"].dtype == bool
            filler = ~batch["valid"]
            assert (batch["label"][filler] == 255).all()
            assert (batch["image"][filler] == 0).all()


def test_one_process_evaluates_in_order():
    ids = [id for batch in evaluate(NumberedSource()) for id in batch["id"]]
    assert ids == [f"number_{i}" for i in range(NUM_EXAMPLES)] + ["", ""]


SIZES = ((6, 8), (9, 5), (70, 33))


@pytest.mark.parametrize("given", [None, (80, 64)])
def test_whole_images_are_padded_not_resized(given):
    source = NumberedSource(3, SIZES)
    made = config()
    made.eval.image_size, made.model.input_mean = given, (1.0, 2.0, 3.0)
    (batch,) = evaluate(source, made=made, batch_size=3)
    canvas = given or (97, 65)  # the next multiples of 32, plus 1
    assert batch["image"].shape == (3, *canvas, 3)
    assert batch["label"].shape == (3, *canvas)
    np.testing.assert_array_equal(batch["size"], SIZES)
    assert batch["size"].dtype == np.int32
    for i, (height, width) in enumerate(SIZES):
        np.testing.assert_array_equal(batch["image"][i, :height, :width], source[i]["image"])
        np.testing.assert_array_equal(batch["label"][i, :height, :width], source[i]["label"])
        outside = np.ones(canvas, bool)
        outside[:height, :width] = False
        assert (batch["label"][i][outside] == 255).all()
        assert (batch["image"][i][outside] == (1, 2, 3)).all()


def test_squeezed_images_are_scored_at_their_own_size():
    source = NumberedSource(3, SIZES)
    made = config(image_size=(16, 24))
    made.eval.protocol = "squeeze"
    (batch,) = evaluate(source, made=made, batch_size=3)
    assert batch["image"].shape == (3, 16, 24, 3)
    assert batch["label"].shape == (3, 70, 33)
    np.testing.assert_array_equal(batch["size"], SIZES)
    for i, (height, width) in enumerate(SIZES):
        assert (batch["image"][i] == i).all()  # resized, not padded
        np.testing.assert_array_equal(batch["label"][i, :height, :width], source[i]["label"])
        assert (batch["label"][i, height:] == 255).all()
        assert (batch["label"][i, :, width:] == 255).all()


def test_the_guide_resizes_the_ground_truth_too():
    source = NumberedSource(3, SIZES)
    made = config(image_size=(16, 24))
    made.eval.protocol = "guide"
    (batch,) = evaluate(source, made=made, batch_size=3)
    assert batch["image"].shape == (3, 16, 24, 3)
    assert batch["label"].shape == (3, 16, 24)
    np.testing.assert_array_equal(batch["size"], [(16, 24)] * 3)
    for i in range(3):
        assert set(np.unique(batch["label"][i])) == {i, 255}  # nearest: no other label, and no padding
        assert (batch["label"][i, :, 0] == 255).all()
        assert (batch["label"][i, :, -1] == i).all()


def test_a_image_larger_than_the_canvas_is_named():
    made = config()
    made.eval.image_size = (64, 64)
    with pytest.raises(
        UserError, match=r"image number_2 is 70x33 .*, larger than eval\.image_size=\(64, 64\); raise it"
    ):
        evaluate(NumberedSource(3, SIZES), made=made)


def test_decode_examples_returns_images_and_labels_at_their_original_sizes(tmp_path):
    prepare("folder", source=make_folder(tmp_path / "own"), data_dir=tmp_path)
    source = data.open_source("folder", "train", data_dir=tmp_path)
    shown = data.decode_examples(source, [2, 0])
    for (image, label), index in zip(shown, [2, 0], strict=True):
        expected = data.decode_example(source[index])
        np.testing.assert_array_equal(image, expected["image"])
        np.testing.assert_array_equal(label, expected["label"])
    assert source.largest_size() == (40, 56)
    assert source.ids() == [source[i]["id"] for i in range(len(source))]


def test_the_padding_color_normalizes_to_about_zero():
    model = base_config().model
    assert data.pad_color(model) == (124, 116, 104)
    model.value_range = (0, 65535)  # the same color of 16 bits
    assert data.pad_color(model) == tuple(round(value * 257) for value in model.input_mean)
    model.value_range = (-1.0, 1.0)
    assert data.pad_color(model) == pytest.approx([value * 2 / 255 - 1 for value in model.input_mean])
    model.value_range = (5, 5)
    with pytest.raises(UserError, match=r"model\.value_range=\(5, 5\) must be two increasing numbers"):
        data.pad_color(model)
