"""Stopping a run in an orderly way: SIGTERM, Ctrl-C and a closed terminal."""

import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils

from deeplab_jax.errors import Preempted
from deeplab_jax.parallel.launcher import CAUSES

logger = logging.getLogger(__name__)


class Preemption:
    """Notices signals that ask a run to stop, so that it saves first. A context manager for the main thread.

    A run is a training, an evaluation or a prediction.

    After SIGTERM, Ctrl-C or SIGHUP, `reached` is True and the run saves. A second Ctrl-C ends the run at once, and so
    does any of the signals while `is_saved`. Signals that were ignored when the process started stay ignored (`nohup`).

    In a run of several processes, JAX's coordination service notices SIGTERM and lets the processes agree on a step
    that none of them has passed. Their launcher turns the other signals into SIGTERM.

    Args:
      end: ends the process at once, given an exit code and a line to print. It is called in another thread, since the
        main thread may be busy outside Python for minutes, for example compiling. Without it, Ctrl-C raises
        KeyboardInterrupt in the main thread once Python runs there, as usual.
      finishing: what the run does after a signal, for its message.
      agrees: whether several processes agree on a step. If they work independently, each stops on its own.

    Attributes:
      is_saved: True if stopping now loses nothing. The run sets it.
    """

    def __init__(
        self,
        end: Callable[[int, str], None] | None = None,
        *,
        finishing: str = "finishing this step and saving",
        agrees: bool = True,
    ):
        self.is_saved = True
        self._finishing, self._agrees = finishing, agrees
        self._end = end
        self._name: str | None = None  # the first signal
        self._previous_handlers, self._sockets, self._previous_fd = {}, (), -1

    @property
    def is_requested(self) -> bool:
        """True once a signal has asked this process to stop."""
        return self._name is not None

    @property
    def stops_now(self) -> bool:
        """True if the run must stop before its next step, without waiting for other processes to agree on one."""
        return self.is_requested and jax.process_count() == 1

    @property
    def cause(self) -> str:
        """The reason why the run stops, for messages."""
        return CAUSES[self._name or "SIGTERM"]

    def stopped(self, where: str, *, resume: str = Preempted.RESUME) -> Preempted:
        """Returns the exception that ends the run.

        Args:
          where: at which step, and what is saved; the end of a sentence.
          resume: how to continue.
        """
        return Preempted(f"stopped by {self.cause} {where}", Preempted.EXIT_CODES[self._name or "SIGTERM"], resume)

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():  # Python's signal handlers belong to that one
            return self
        for name in CAUSES:
            number = getattr(signal, name, None)
            is_taken = name == "SIGTERM" and self._agrees and jax.process_count() > 1  # by JAX's service
            if number is None or is_taken or signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            self._previous_handlers[number] = signal.signal(number, self._handle)
        if self._end is not None:
            self._sockets = socket.socketpair()
            for end in self._sockets:
                end.setblocking(end is self._sockets[0])
            # The interpreter's C handler writes the number of each signal here, whatever the main thread is doing.
            self._previous_fd = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._sockets[0],), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._sockets:
            signal.set_wakeup_fd(self._previous_fd)
            self._sockets[1].close()  # which ends the thread
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers, self._sockets = {}, ()

    def reached(self, step: int) -> bool:
        """Returns True if the run must save and stop after this step.

        All processes get True at the same step. Call it at every step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.is_requested

    def _listen(self, reader: socket.socket) -> None:
        with reader:
            while numbers := reader.recv(16):
                for number in numbers:
                    if number in self._previous_handlers:
                        self._note(signal.Signals(number))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._end is None:
            self._note(signal.Signals(number))

    def _note(self, signal_: signal.Signals) -> None:
        is_first, self._name = self._name is None, self._name or signal_.name
        if jax.process_count() > 1:  # the launcher decides
            return
        ends = self.is_saved if is_first else signal_.name == "SIGINT"
        if ends and self._end is not None:
            lost = "" if self.is_saved else " without saving"
            self._end(Preempted.EXIT_CODES[signal_.name], f"stopped by {CAUSES[signal_.name]}{lost}")
        elif ends and signal_.name == "SIGINT":
            raise KeyboardInterrupt
        elif is_first:
            logger.info("%s: %s; press Ctrl-C to stop at once without saving", self.cause, self._finishing)
