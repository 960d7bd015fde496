"""A command of `deeplab-jax`: its help, its arguments and its handler."""

import argparse
import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command. Its module imports nothing slow: `run` imports what it needs.

    Attributes:
      name: one word, or two for a command of a group, such as `data check`.
      summary: one sentence for the list of commands and the top of its own `--help`.
      add_arguments: adds the command's arguments to its parser.
      run: does the work.
      examples: two command lines, without `deeplab-jax` in front; a test parses them.
      when_out_of_memory: the fix if memory runs out: the arguments and fields that set how much is needed.
      takes_config: the command accepts `--config` and `--config.group.field`, which `run` finds in
        `args.config_arguments`.
      needs_config: `--config` cannot be left out.
      own_config: `--config NAME` is not accepted, only overrides.
      lists: what `--help` lists by name, keys of `names.LISTS`.
      note: a paragraph at the end of `--help`.
    """

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: tuple[str, str]
    when_out_of_memory: str = ""
    takes_config: bool = False
    needs_config: bool = False
    own_config: bool = False
    lists: tuple[str, ...] = ()
    note: str = ""
