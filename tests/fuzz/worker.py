"""The process that reads damaged files: one line in, `target seed`, one JSON line out. The parent restarts it."""

import contextlib
import faulthandler
import json
import logging
import os
import pathlib
import random
import resource
import signal
import sys
import time
import traceback
import warnings

#: What one input may cost: seconds of a busy machine, and bytes beyond what the process had before.
#: `deeplab_jax.budget` allows 512 MB of arrays for a small file, which a reader may hold twice.
SECONDS, MEMORY = 20, 1 << 30
_ADDRESS_SPACE = 3 << 30  # of the whole input, so that a failure does not take the machine down


class TooSlow(BaseException):
    """Raised by the alarm; nothing catches it."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from deeplab_jax.errors import UserError
    from tests.fuzz.inputs import make_targets

    targets = make_targets(pathlib.Path(sys.argv[1]))
    for target in targets:
        with contextlib.suppress(UserError):  # small files are not all whole networks
            target.read()  # imports and traces what is needed
    print(json.dumps([target.reader for target in targets]), file=answers, flush=True)
    _limit_address_space()
    signal.signal(signal.SIGALRM, _raise_too_slow)
    for line in sys.stdin:
        index, seed = map(int, line.split())
        target = targets[index]
        content = target.mutate(random.Random(seed), target.content)
        target.path.write_bytes(content)
        before, started = _reset_peak(), time.perf_counter()
        outcome, message = "read", ""
        signal.alarm(SECONDS)
        try:
            target.read()
        except UserError as error:
            outcome, message = "refused", str(error)
            if "\n" in message or not message.strip():
                outcome = "traceback"
        except TooSlow:
            outcome = "beyond budget"
        except MemoryError:
            outcome, message = "beyond budget", traceback.format_exc()
        except BaseException:
            outcome, message = "traceback", traceback.format_exc()
        finally:
            signal.alarm(0)
        peak = _memory("VmHWM") - before
        if peak > MEMORY + 8 * len(content):
            outcome = "beyond budget"
        result = {"outcome": outcome, "seconds": time.perf_counter() - started, "peak": peak, "message": message}
        print(json.dumps(result), file=answers, flush=True)
        target.path.write_bytes(target.content)


def _raise_too_slow(*_: object) -> None:
    raise TooSlow


def _limit_address_space() -> None:
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, used + _ADDRESS_SPACE))


def _reset_peak() -> int:
    """Resets the peak of the resident memory; returns the present value in bytes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()
