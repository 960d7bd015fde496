"""Logits of sliding windows and of images that keep their aspect ratio, against plain loops over windows."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.data.view_protocols import KeepRatio, Windows
from deeplab_jax.inference.views import view_network

CLASSES = 3


class Network(nn.Module):
    """A network whose logits depend on the border of its input, as those of padded convolutions do."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, *, train):
        del train
        x = nn.Conv(CLASSES, (5, 5), padding="SAME", kernel_init=nn.initializers.normal(1.0))(images / 255.0)
        return x, {"logits": x[:, ::2, ::2]}


@pytest.fixture(scope="module")
def network():
    model = Network()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)


@functools.partial(jax.jit, static_argnums=0)
def jitted_apply(model, variables, pixels):
    return model.apply(variables, pixels, train=False)[0]


def apply(network, pixels):
    """The float64 logits of one image."""
    return np.asarray(jitted_apply(*network, pixels[None].astype(np.float32))[0], np.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def slide(network, image, window, stride, convert):
    """Windows from the top left; those that would leave the image are moved back. Sums are divided by counts."""
    height, width = image.shape[:2]
    total, counts = np.zeros((height, width, CLASSES)), np.zeros((height, width, 1))
    tops, lefts = ({min(start, max(extent - side, 0)) for start in range(0, extent - side + step, step)} or {0}
                   for extent, side, step in zip((height, width), window, stride, strict=True))  # fmt: skip
    for top in tops:
        for left in lefts:
            part = np.s_[top : top + window[0], left : left + window[1]]
            total[part] += convert(apply(network, image[part]))
            counts[part] += 1
    return total / counts


def random_images(*sizes, canvas):
    rng = np.random.default_rng(5)
    images = np.full((len(sizes), *canvas, 3), 9, np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return images


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("window", "stride", "sizes"),
    [
        ((12, 16), (8, 12), [(21, 28), (20, 17)]),  # the last windows are moved back; the second image has fewer
        ((12, 16), (12, 16), [(24, 32)]),  # no overlap
        ((12, 16), (12, 5), [(12, 29)]),  # many windows see a pixel
        ((12, 50), (8, 40), [(30, 21)]),  # the image is narrower than a window
    ],
)
def test_windows_are_averaged_where_they_overlap(network, window, stride, sizes, average):
    protocol = Windows(None, window=window, stride=stride, average=average)
    canvas = tuple(np.max(sizes, axis=0).tolist())
    images = random_images(*sizes, canvas=canvas)
    slides = view_network(network[0], protocol, flip=True)
    direct, mirrored = slides(network[1], jnp.asarray(images), jnp.array(sizes, jnp.int32))
    for i, (height, width) in enumerate(sizes):
        image = images[i, :height, :width]
        for got, step in ((direct, 1), (mirrored, -1)):
            convert = (lambda logits: logits) if average == "logits" else softmax
            expected = slide(network, image[:, ::step], window, stride, convert)[:, ::step]
            if average == "probabilities":
                expected = np.log(expected)
            # Logits are of order 10 and summed in float32.
            np.testing.assert_allclose(got[i, :height, :width], expected, atol=1e-5)


def test_whole_views_are_seen_as_they_are(network):
    image = random_images((13, 21), canvas=(13, 21))
    run = view_network(network[0], KeepRatio(None, scale_to=(13, 99)), flip=True)
    direct, mirrored = run(network[1], image, np.array([[13, 21]]))
    np.testing.assert_allclose(direct[0], apply(network, image[0]), atol=1e-5)
    np.testing.assert_allclose(mirrored[0], apply(network, image[0, :, ::-1])[:, ::-1], atol=1e-5)
    coarse = view_network(network[0], KeepRatio(None, scale_to=(13, 99)), coarse=True)
    np.testing.assert_array_equal(coarse(network[1], image, None)[0], np.asarray(direct)[:, ::2, ::2])
