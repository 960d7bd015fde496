"""Progress bars for long work. The library draws none; the command line chooses a console for them.

All bars share one live display, so they nest, and log lines printed on the same console appear above them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # --help must not wait for it
    from rich.console import Console
    from rich.progress import Progress

_T = TypeVar("_T")

_console: "Console | None" = None
_display: "Progress | None" = None


def show_on(console: "Console | None") -> None:
    """Draws the bars of this process on `console` if it is a terminal; None draws none, which is the default."""
    global _console
    _console = console


class Bar:
    """One line of the display. Does nothing where no display is shown."""

    def __init__(self, display: "Progress | None", task: Any):
        self._display, self._task = display, task

    @property
    def is_shown(self) -> bool:
        """Whether someone can see the bar; if not, log lines have to tell the progress."""
        return self._display is not None

    def advance(self, amount: int | float = 1) -> None:
        """Adds to what is done."""
        if self._display is not None:
            self._display.advance(self._task, amount)

    def update(
        self, *, completed: int | float | None = None, total: int | float | None = None, status: str = ""
    ) -> None:
        """Sets what is done, the total, or the text at the end of the line."""
        if self._display is not None:
            self._display.update(self._task, completed=completed, total=total, status=status)


@contextlib.contextmanager
def bar(
    description: str, total: int | float | None = None, *, completed: int | float = 0, is_bytes: bool = False
) -> Iterator[Bar]:
    """A bar for the duration of a `with` block.

    Args:
      description: what is being done, in a word or two.
      total: amount of work; None if unknown.
      completed: amount done already.
      is_bytes: amounts are bytes and are shown with sizes and a speed.
    """
    global _display
    if _console is None or not _console.is_terminal:
        yield Bar(None, None)
        return
    if _display is None:
        _display = _new_display(_console)
        _display.start()
    display = _display
    task = display.add_task(description, total=total, completed=completed, status="", is_bytes=is_bytes)
    try:
        yield Bar(display, task)
    finally:
        display.remove_task(task)
        if not display.tasks and _display is display:
            display.stop()
            _display = None


def track(items: Iterable[_T], description: str, total: int | None = None) -> Iterator[_T]:
    """The items, with a bar that advances by one for each."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    with bar(description, total) as shown:
        for item in items:
            yield item
            shown.advance()


def _new_display(console: "Console") -> "Progress":
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        """Done and total, as sizes for bytes."""

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
