"""Interpreter of pickles that executes no code and has a bounded cost.

A pickle is a program: unpickling it calls whatever functions it names. This interpreter keeps its own stack and runs
the instructions that build containers, numbers and strings (`pickletools.genops` parses them and runs nothing). It
never imports or calls what a file names: the few functions that a reader needs have stand-ins, and everything else
becomes an `Opaque`, an inert object that has only a name.

The cost of an instruction does not depend on what the file built before, so the number of instructions bounds it:

- keys of dictionaries are strings and small integers, whose hashes take no time; sets stay opaque;
- nothing is compared, copied, converted to text or unpacked unless its type and length are known.
"""

import dataclasses
import io
import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from deeplab_jax import budget

_MOST_ARGUMENTS = 16
_SHOWN = 80  # characters of a name in a message


class BadPickle(Exception):
    """The pickle is invalid or exceeds the limits."""


@dataclasses.dataclass(frozen=True)
class Opaque:
    """A function, class or object that the interpreter does not know. It does nothing.

    Attributes:
      name: its name, for messages.
    """

    name: str


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Takes the place of a function that a pickle names; `call` must accept any arguments or raise `BadPickle`."""

    call: Callable[..., Any]


def run(
    stream: io.BytesIO, names: Mapping[tuple[str, str], Any], load_persistent: Callable[[tuple], Any] | None = None
) -> Any:
    """Interprets the pickle at the position of a stream, and leaves the stream after it.

    Args:
      stream: the file.
      names: what to use for the module and name of a global: a `StandIn`, or a value; all others become opaque.
      load_persistent: returns the object of a persistent id, which is a tuple of at most 16 items.

    Raises:
      BadPickle: the pickle is invalid or exceeds the limits.
    """
    machine = _Machine(names, load_persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns about escape sequences in damaged names
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if opcode.name == "STOP":
                    return machine.pop()
                if count >= budget.PICKLE_INSTRUCTIONS:
                    raise BadPickle(f"it has more than {budget.PICKLE_INSTRUCTIONS} instructions")
                machine.step(opcode.name, argument)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise BadPickle(str(error)) from None
    raise BadPickle("it has no end")


def abridge(name: str) -> str:
    """Returns a name from a file for a message: quoted, without control characters, not longer than a line."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


class _Machine:
    """The stack and the memo of a pickle; see the docstrings of `pickletools` for the instructions."""

    def __init__(self, names: Mapping[tuple[str, str], Any], load_persistent: Callable[[tuple], Any] | None):
        self._names, self._load_persistent = names, load_persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction."""
        if name in _LITERALS:
            if type(argument) is int and argument.bit_length() > budget.PICKLE_INTEGER_BITS:
                raise BadPickle(f"it has an integer of {argument.bit_length()} bits")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise BadPickle(f"it has the instruction {name}")

    def pop(self) -> Any:
        """Removes and returns the top of the stack."""
        if not self._stack or self._marks and self._marks[-1] == len(self._stack):
            raise BadPickle("an operand is missing")
        return self._stack.pop()

    def _top(self) -> Any:
        item = self.pop()
        self._stack.append(item)
        return item

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise BadPickle("a mark is missing")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _discard(self, _: None) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self.pop()

    def _put(self, key: int) -> None:
        self._memo[key] = self._top()

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def _tuple_of(self, count: int) -> None:
        self._stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def _dict_of(self, _: None) -> None:
        items = self._pop_to_mark()
        self._stack.append(pairs_to_dict(zip(items[::2], items[1::2], strict=True)))

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            raise BadPickle(f"items are appended to a {type(target).__name__}")

    def _update(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is dict:
            target.update(pairs_to_dict(zip(items[::2], items[1::2], strict=True)))
        elif type(target) is not Opaque:
            raise BadPickle(f"a {type(target).__name__} has no keys")

    def _append(self, _: None) -> None:
        self._extend([self.pop()])

    def _set_item(self, _: None) -> None:
        value = self.pop()
        self._update([self.pop(), value])

    def _drop_to_mark(self, name: str) -> None:
        self._pop_to_mark()
        self._stack.append(Opaque(name))

    def _add_items(self, _: None) -> None:
        self._pop_to_mark()

    def _global(self, argument: str) -> None:
        self._stack.append(self._lookup(*argument.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise BadPickle("the name of a function is not a string")
        self._stack.append(self._lookup(module, name))

    def _lookup(self, module: str, name: str) -> Any:
        found = self._names.get((module, name))
        return Opaque(abridge(f"{module}.{name}")) if found is None else found

    def _reduce(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise BadPickle("arguments are not a tuple")
        if type(function) is StandIn:
            if len(arguments) > _MOST_ARGUMENTS:
                raise BadPickle(f"a function has {len(arguments)} arguments")
            self._stack.append(function.call(*arguments))
        else:
            self._stack.append(_result_of(function))

    def _new(self, count: int) -> None:
        for _ in range(count):
            self.pop()
        self._stack.append(_result_of(self.pop()))

    def _object(self, _: None) -> None:
        items = self._pop_to_mark()
        self._stack.append(_result_of(items[0]))

    def _instance(self, argument: str) -> None:
        self._pop_to_mark()
        self._stack.append(_result_of(self._lookup(*argument.split(" ", 1))))

    def _build(self, _: None) -> None:
        self.pop()  # attributes: a state dict has `_metadata` with the versions of its modules
        if type(target := self._top()) not in (dict, Opaque):
            raise BadPickle(f"it sets attributes of a {type(target).__name__}")

    def _persistent(self, _: None) -> None:
        identity = self.pop()
        if self._load_persistent is None or type(identity) is not tuple or len(identity) > _MOST_ARGUMENTS:
            raise BadPickle("a persistent id is not a short tuple")
        self._stack.append(self._load_persistent(identity))


def pairs_to_dict(pairs: Any) -> dict[str | int | None, Any]:
    """Returns a dictionary of (key, value) pairs.

    Raises:
      BadPickle: a key is neither a string, None, nor an integer of 64 bits. Other keys, tuples above all, may take
        exponential time to hash.
    """
    result = {}
    for key, value in pairs:
        small = type(key) in (int, bool) and key.bit_length() < 64
        if not (small or key is None or type(key) is str):
            raise BadPickle(f"a dictionary has a key of type {type(key).__name__}")
        result[key] = value
    return result


def _result_of(function: Any) -> Opaque:
    return function if type(function) is Opaque else Opaque(f"a call of a {type(function).__name__}")


_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: Opaque("a set")}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._discard,
    "POP_MARK": _Machine._add_items,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._pop_to_mark())),
    "DUP": lambda machine, _: machine._stack.append(machine._top()),
    "DICT": _Machine._dict_of,
    "LIST": lambda machine, _: machine._stack.append(machine._pop_to_mark()),
    "FROZENSET": lambda machine, _: machine._drop_to_mark("a set"),
    "APPEND": _Machine._append,
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "ADDITEMS": _Machine._add_items,
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda machine, _: machine._update(machine._pop_to_mark()),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": lambda machine, _: machine._new(1),
    "NEWOBJ_EX": lambda machine, _: machine._new(2),
    "OBJ": _Machine._object,
    "INST": _Machine._instance,
    "EXT1": lambda machine, _: machine._stack.append(Opaque("the registry of extensions")),
    "EXT2": lambda machine, _: machine._stack.append(Opaque("the registry of extensions")),
    "EXT4": lambda machine, _: machine._stack.append(Opaque("the registry of extensions")),
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
