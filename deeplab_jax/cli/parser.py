"""The parser of the whole command line, and what `--help` shows."""

import argparse
import difflib
import itertools
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import NoReturn

from deeplab_jax import __version__
from deeplab_jax.cli import arguments, names
from deeplab_jax.cli.command import Command
from deeplab_jax.cli.config_flags import split_arguments
from deeplab_jax.errors import UsageError

_PROGRAM = "deeplab-jax"

_OVERRIDES_HELP = "--config.GROUP.FIELD=VALUE              override a field, for example --config.data.batch_size=8"
_CONFIG_HELP = f"""configs:
  --config NAME_OR_FILE[:key=value,...]   a built-in config, or a Python file that defines get_config
  {_OVERRIDES_HELP}"""
_OWN_CONFIG_HELP = f"configs:\n  {_OVERRIDES_HELP}"

#: Groups of commands: their summary and two examples.
_GROUPS = {
    "data": (
        "Prepare, check and show data sets; import and export annotations.",
        ("data prepare folder --source photos --data-dir data", "data check folder --data-dir data"),
    ),
    "papers": (
        "List, show, train and verify the published rows of the papers.",
        ("papers list --paper v3plus --table 3", "papers show v3plus-3-16-16-decoder"),
    ),
}
_EXAMPLES = ("predict photo.jpg --output masks", "train --config quickstart --workdir runs/quickstart")


class _Parser(argparse.ArgumentParser):
    """Raises a `UsageError` where argparse would print its usage and exit."""

    def __init__(self, *args, command: Command | None = None, examples: Sequence[str] = (), **kwargs):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, formatter_class=formatter, allow_abbrev=False, **kwargs)
        self._command, self._examples = command, examples
        self._given: Sequence[str] = ()

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Remembers the command line, so that `error` can name the option that was misspelled."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # An option that is required is often there, but misspelled.
        unknown = [hint for item in self._given if (hint := self.suggest_option(item))]
        raise UsageError("; ".join([message, *unknown, f"see `{self.prog} --help`"]))

    def suggest_option(self, item: str) -> str | None:
        """Returns the end of a message about an option that does not exist; None if it does or nothing is close."""
        if not item.startswith("--"):
            return None
        name = item.partition("=")[0]
        is_config = self._command is not None and self._command.takes_config
        if name in self._option_string_actions or (is_config and name.startswith("--config")):
            return None
        options = [*self._option_string_actions, *(["--config"] if is_config else [])]
        if close := difflib.get_close_matches(name, options, n=1, cutoff=0.75):
            return f"did you mean {close[0]} instead of {name}?"
        if is_config:
            from deeplab_jax.config import find_field

            if field := find_field(name.lstrip("-")):
                return f"did you mean --config.{field} instead of {name}?"
        return None

    def format_help(self) -> str:
        """Formats the help. The lists of names are read now, so other calls do not pay for them."""
        parts = [] if self._command is None else _help_of(self._command)
        self.epilog = "\n\n".join([*parts, _examples_help(self._examples)])
        if self._command is not None and self._command.takes_config and self.usage is None:
            name = "--config NAME " if self._command.needs_config else "[--config NAME] "
            name = "" if self._command.own_config else name
            generated = self.format_usage().removeprefix("usage: ").rstrip().replace("%", "%%")
            self.usage = f"{generated}\n{' ' * len(f'usage: {self.prog} ')}{name}[--config.GROUP.FIELD=VALUE ...]"
        return super().format_help()


def parse(argv: Sequence[str], commands: Iterable[Command]) -> tuple[Command, argparse.Namespace]:
    """Parses a command line.

    Returns:
      The command, and its arguments. `argv` is among them, and `config_arguments` for a command that takes a config.

    Raises:
      UsageError: the command line is invalid.
    """
    args, rest = _build_parser(commands).parse_known_args(argv)
    command = args.handler
    args.argv = list(argv)
    if command.takes_config:
        args.config_arguments, rest = split_arguments(rest)
    for item in rest:
        hints = [_suggest_quotes(argv, item) if command.takes_config else None, args.parser.suggest_option(item)]
        parts = [f"unknown argument {item}", *filter(None, hints), f"see `{_PROGRAM} {command.name} --help`"]
        raise UsageError("; ".join(parts))
    return command, args


def _suggest_quotes(argv: Sequence[str], item: str) -> str | None:
    """Returns a hint if an argument may be the rest of the value of the config field before it."""
    before = itertools.takewhile(lambda other: other != item, argv)
    start = next((other for other in reversed(list(before)) if other.startswith("--")), "")
    if item.startswith("-") or not start.startswith("--config."):
        return None
    value = " ".join(argv[argv.index(start) : argv.index(item) + 1])
    return f"a value with spaces needs quotes: '{value}'"


def _build_parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description="DeepLabv3+ semantic segmentation in JAX.", examples=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"deeplab_jax {__version__}")
    parsers = {"": parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")}
    for command in commands:
        group, _, name = command.name.rpartition(" ")
        if group not in parsers:
            summary, examples = _GROUPS[group]
            group_parser = parsers[""].add_parser(group, help=summary, description=summary, examples=examples)
            parsers[group] = group_parser.add_subparsers(
                dest="verb", required=True, metavar="COMMAND", title="commands"
            )
        summary = command.summary
        own = parsers[group].add_parser(
            name, help=summary, description=summary, command=command, examples=command.examples
        )
        own.set_defaults(handler=command, parser=own)
        command.add_arguments(own)
        arguments.add_common(own)
    return parser


def _help_of(command: Command) -> list[str]:
    """The paragraphs between the arguments and the examples."""
    parts = [_OWN_CONFIG_HELP if command.own_config else _CONFIG_HELP] if command.takes_config else []
    parts += [f"{title}:\n{_fill(', '.join(names.LISTS[title]()))}" for title in command.lists]
    if command.note:
        parts.append(f"note:\n{_fill(command.note)}")
    return parts


def _examples_help(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {_PROGRAM} {example}" for example in examples)])


def _fill(text: str) -> str:
    return textwrap.fill(
        text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
