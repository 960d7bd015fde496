"""Progress bars. The library draws none until `show_on` names a console, which `deeplab-jax` does.

All bars share one live display: they can be nested, and log lines printed on the same console appear above them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # `--help` does not import rich
    from rich.console import Console
    from rich.progress import Progress

from deeplab_jax.text import printable

_T = TypeVar("_T")

#: Attribute of log records whose message a bar shows already; see `Bar.log_extra`.
SHOWN_IN_BAR = "shown_in_bar"

_console: "Console | None" = None
_display: "Progress | None" = None


def show_on(console: "Console | None") -> None:
    """Draws the progress bars of this process on `console` if it is a terminal. None, the default, hides them."""
    global _console
    _console = console


def is_shown() -> bool:
    """Returns True if progress bars appear on a terminal."""
    return _console is not None and _console.is_terminal


class Bar:
    """One line of the display. Its methods do nothing if no display is shown."""

    def __init__(self, display: "Progress | None", task: Any):
        self._display, self._task = display, task

    @property
    def log_extra(self) -> dict[str, bool]:
        """The `extra` of a log message that repeats the bar's status, so that the console shows only one of them."""
        return {SHOWN_IN_BAR: self._display is not None}

    def advance(self, amount: int | float = 1) -> None:
        """Adds `amount` to the work done."""
        if self._display is not None:
            self._display.advance(self._task, amount)

    def update(
        self, *, completed: int | float | None = None, total: int | float | None = None, status: str = ""
    ) -> None:
        """Sets the work done, the total, and the text at the end of the line."""
        if self._display is not None:
            self._display.update(self._task, completed=completed, total=total, status=printable(status))


@contextlib.contextmanager
def bar(
    description: str, total: int | float | None = None, *, completed: int | float = 0, is_bytes: bool = False
) -> Iterator[Bar]:
    """Shows a bar for the duration of a `with` block.

    Args:
      description: one or two words, such as "download".
      total: amount of work; None if unknown.
      completed: amount of work already done.
      is_bytes: amounts are bytes, shown as sizes and a speed.
    """
    global _display
    if not is_shown():
        yield Bar(None, None)
        return
    if _display is None:
        _display = _new_display(_console)
        _display.start()
    display = _display
    task = display.add_task(printable(description), total=total, completed=completed, status="", is_bytes=is_bytes)
    try:
        yield Bar(display, task)
    finally:
        display.remove_task(task)
        if not display.tasks and _display is display:
            display.stop()
            _display = None


def track(items: Iterable[_T], description: str, total: int | None = None, *, completed: int = 0) -> Iterator[_T]:
    """Yields `items` and advances a bar by one for each. `total` defaults to `len(items)` if there is one.

    `completed` is the number of items before these.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with bar(description, total, completed=completed) as shown:
        for item in items:
            yield item
            shown.advance()


def _new_display(console: "Console") -> "Progress":
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        """Work done and total, as sizes if they are bytes."""

        def render(self, task: Task) -> Text:
            def text(amount: int | float) -> str:
                return decimal(int(amount)) if task.fields["is_bytes"] else f"{amount:g}"

            done = text(task.completed) if task.total is None else f"{text(task.completed)}/{text(task.total)}"
            if task.fields["is_bytes"] and task.speed:
                done += f" {decimal(int(task.speed))}/s"
            return Text(done)

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Amount(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        transient=True,
    )
