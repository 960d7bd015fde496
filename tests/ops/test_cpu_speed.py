"""Every trick of the CPU backend still beats plain XLA. When one fails here with a new jaxlib, delete the trick."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from deeplab_jax import ops
from tests.support.cpu_speed import CASES
from tests.support.operations import CPU, conv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ratios():
    """Time of plain XLA over that of the CPU backend, by operation."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cpu_speed"],
        capture_output=True, text=True, timeout=900, check=True, env=environment,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_the_operation_is_faster_than_xla(ratios, name):
    assert ratios[name] > 1.1, ratios


def temporaries(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_the_gradient_of_units_keeps_less_than_that_of_xla():
    """Convolutions, BatchNorm in closed form, and images computed again after their cotangents."""
    x, kernel = jnp.ones((4, 64, 64, 32)), jnp.ones((1, 1, 32, 32))

    def gradient(using):
        def loss(parameters, x):
            for kernel, scale, bias in parameters:
                x = jax.nn.relu(using.batch_norm(conv(x, kernel, using=using), scale, bias, 1e-5)[0])
            return jnp.sum(x)

        return temporaries(jax.grad(loss), [(kernel, *jnp.ones((2, 32)))] * 8, x)

    assert gradient(CPU) < 0.8 * gradient(ops.XLA)


def test_xla_still_computes_residual_sums_more_than_once():
    """Without `add` a reader of a sum computes all sums before it again; `tests/ops/test_cpu.py` has ours."""

    def chain(x, kernel):
        for _ in range(6):
            x = jax.nn.relu(ops.XLA.add(x, x @ kernel))
        return x

    text = jax.jit(chain).lower(jnp.ones((64, 32)), jnp.ones((32, 32))).compile().as_text()
    assert text.count(" maximum(") > 6
