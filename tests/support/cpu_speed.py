"""Times single operations of the CPU backend against plain XLA, and prints their ratios as JSON.

It runs in its own process, because the test suite compiles without optimizations.
"""

import functools
import json
import time

import jax
import numpy as np

from deeplab_jax import ops
from tests.support.operations import CPU, conv, depthwise_conv, max_pool

# Operation, whether to time the gradients of these arguments instead of the value, and the shapes of the arguments.
CASES = {
    "1x1": (conv, None, (1, 64, 64, 256), (1, 1, 256, 64)),
    "1x1 gradients": (conv, (0, 1), (1, 64, 64, 256), (1, 1, 256, 64)),
    "taps": (functools.partial(conv, rate=12), None, (1, 32, 32, 512), (3, 3, 512, 64)),
    "winograd gradients": (conv, (0, 1), (2, 64, 64, 128), (3, 3, 128, 128)),
    "banded kernel gradient": (functools.partial(conv, stride=2), (1,), (1, 512, 512, 3), (7, 7, 3, 64)),
    "depthwise": (depthwise_conv, None, (1, 64, 64, 96), (3, 3, 1, 96)),
    "depthwise gradients": (depthwise_conv, (0, 1), (1, 64, 64, 96), (3, 3, 1, 96)),
    "max-pool gradient": (functools.partial(max_pool, window=3, stride=2), (0,), (1, 128, 128, 64)),
}


def program(operation, wanted, using):
    """The value of the arguments, or with a cotangent before these, the gradients of the wanted ones."""
    function = functools.partial(operation, using=using)
    if wanted is None:
        return jax.jit(function)

    def gradients(cotangent, *arguments):
        def of_wanted(*chosen):
            return function(*(chosen[wanted.index(i)] if i in wanted else x for i, x in enumerate(arguments)))

        return jax.vjp(of_wanted, *(arguments[i] for i in wanted))[1](cotangent)

    return jax.jit(gradients)


def best_times(programs, arguments, rounds=7):
    """The shortest time of each program, in turns."""
    for run in programs:
        jax.block_until_ready(run(*arguments))
    times = [[] for _ in programs]
    for _ in range(rounds):
        for run, seconds in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            seconds.append(time.perf_counter() - start)
    return [min(seconds) for seconds in times]


def main():
    rng = np.random.default_rng(0)
    ratios = {}
    for name, (operation, wanted, *shapes) in CASES.items():
        arguments = jax.device_put([rng.standard_normal(shape, np.float32) for shape in shapes])
        programs = [program(operation, wanted, using) for using in (ops.XLA, CPU)]
        if wanted is not None:
            output = jax.eval_shape(functools.partial(operation, using=ops.XLA), *arguments)
            arguments = [jax.device_put(rng.standard_normal(output.shape, np.float32)), *arguments]
        plain, fast = best_times(programs, arguments)
        ratios[name] = plain / fast
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
