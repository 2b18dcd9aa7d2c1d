"""The process of the tests in :mod:`alignment.reward.sandbox`: names that they do not define are asked of the answer.

It is loaded by path inside the sandbox. What the answer gives back is a value that this process built itself, or a
:class:`Remote`. A remote object is never equal to a value, and takes no part in arithmetic with one unless the tests
made it by calling its class: an answer cannot bring along what "equal" means. Python's own functions, and modules of
its library, are always this process's.
"""

import builtins
import importlib
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "truediv", "floordiv": "floordiv", "mod": "mod", "pow": "pow",
    "matmul": "matmul", "and": "and_", "or": "or_", "xor": "xor", "lshift": "lshift", "rshift": "rshift",
}  # fmt: skip
ORDER = ("lt", "le", "gt", "ge")
UNARY = {"neg": "neg", "pos": "pos", "invert": "invert", "abs": "abs", "int": "int", "float": "float", "index": "index",
         "round": "round", "len": "len", "iter": "iter", "reversed": "reversed", "bool": "truth"}  # fmt: skip
NUMERIC = {"abs", "int", "float", "index", "round", "len", "bool"}  # what makes a value of an object


class Tests:
    """The tests' side of the wire."""

    def __init__(self, wire: Any, codec: Any) -> None:
        self.wire, self.codec = wire, codec
        self.objects: list[Any] = []
        self.exceptions: dict[str, type[BaseException]] = {}

    def begin(self) -> None:
        """Waits until the program ran to its end. Raises its error where it had one."""
        message = self.wire.receive()
        if "error" in message:
            raise self._raised(message["error"])

    def ask(self, op: str, *arguments: Any, _named: dict[str, Any] | None = None, made: bool = False) -> Any:
        """Has the answer's process do something; containers among the arguments change here as they changed there."""
        named = _named or {}
        more = {name: self.encode(one) for name, one in named.items()}
        self.wire.send({"op": op, "args": [self.encode(one) for one in arguments], "kwargs": more})
        message = self._response()
        for old, new in zip(arguments, message.get("args", ()), strict=False):
            if new is not None:
                refill(old, self.decode(new))
        for name, new in message.get("kwargs", {}).items():
            if new is not None and name in named:
                refill(named[name], self.decode(new))
        return self.decode(message["ok"], made=made)

    def name(self, name: str) -> Any:
        """A name of the answer's namespace. Raises KeyError where it has none."""
        self.wire.send({"op": "name", "name": name})
        message = self._response()
        if "missing" in message:
            raise KeyError(name)
        return self.decode(message["ok"])

    def encode(self, value: Any) -> Any:
        def handle(one: Any) -> dict[str, Any]:
            if isinstance(one, Remote):
                return {"y": object.__getattribute__(one, "_number"), "k": "yours"}
            self.objects.append(one)
            return {"x": len(self.objects) - 1, "k": "theirs"}

        return self.codec.encoded(value, handle)

    def decode(self, value: Any, *, made: bool = False) -> Any:
        def handle(told: dict[str, Any]) -> Any:
            if "y" in told:
                return self.objects[told["y"]]
            if told["k"] == "exception":
                return self._exception(told)
            return Remote(self, told["x"], told["k"], made=made)

        return self.codec.decoded(value, handle)

    def _response(self) -> dict[str, Any]:
        while "op" in (message := self.wire.receive()):
            self.wire.send(self._called(message))
        if "error" in message:
            raise self._raised(message["error"])
        return dict(message)

    def _called(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the answer asks of an object that the tests passed: a call, the next item, an instance's attribute."""
        try:
            thing = self.objects[request["of"]]
            arguments = [self.decode(one) for one in request["args"]]
            if request["op"] == "call" and callable(thing):
                named = {name: self.decode(one) for name, one in request["kwargs"].items()}
                return {"ok": self.encode(thing(*arguments, **named))}
            if request["op"] == "next":
                return {"ok": self.encode(next(thing))}
            # Only instances of classes that the tests define: a generator's attributes lead to frames.
            if type(thing).__module__ == "tests" and not str(arguments[0]).startswith("_"):
                done: Any = {"getattr": getattr, "setattr": setattr}[request["op"]]
                return {"ok": self.encode(done(thing, *arguments))}
            raise TypeError("not to be had from an answer")
        except self.codec.Ended:
            raise
        except BaseException as error:
            return {"error": [self.codec.base_of(type(error)), str(error)[:2000]]}

    def _raised(self, told: list[Any]) -> BaseException:
        base, text, own = told
        kind = self.decode(own) if own is not None else getattr(builtins, base)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            kind = RuntimeError
        try:
            raised: BaseException = kind(text)
            return raised
        except TypeError:  # UnicodeDecodeError and its like want more
            return RuntimeError(f"{base}: {text}")

    def _exception(self, told: dict[str, Any]) -> type[BaseException]:
        """The answer's class of exceptions as one of this process, under which its errors can be caught here."""
        known = self.exceptions
        if told["name"] not in known:
            known[told["name"]] = type(str(told["name"]), (getattr(builtins, told["base"]),), {})
        return known[told["name"]]


class Namespace(dict[str, Any]):
    """The tests' globals, which ask the answer for what they do not have."""

    def __init__(self, tests: Tests) -> None:
        super().__init__(__name__="tests", __builtins__=builtins)
        self.tests = tests

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name) or name.startswith("__"):
            raise KeyError(name)
        value: Any = None
        try:
            value = self.tests.name(name)
        except KeyError:
            if name not in sys.stdlib_module_names:
                raise
        own = name in sys.stdlib_module_names and not (isinstance(value, Remote) and is_function(value))
        self[name] = importlib.import_module(name) if own else value
        return self[name]


class Remote:
    """An object of the answer's process.

    ``made``: the tests made it by calling its class, or from such objects. ``mixed``: a value of theirs took part.
    """

    def __init__(self, tests: Tests, number: int, kind: str, *, made: bool = False, mixed: bool = False) -> None:
        values = {"_tests": tests, "_number": number, "_kind": kind, "_made": made, "_mixed": mixed}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._tests.ask("call", self, *arguments, _named=named, made=self._kind == "class" or self._made)

    def __getattr__(self, name: str) -> Any:
        if self._kind == "function" and not name.startswith("__"):
            raise AttributeError(name)
        return self._tests.ask("getattr", self, name, made=self._made or self._kind == "class")

    def __setattr__(self, name: str, value: Any) -> None:
        self._tests.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._tests.ask("delattr", self, name)

    def __eq__(self, other: object) -> Any:
        return self is other or (isinstance(other, Remote) and bool(self._tests.ask("eq", self, other)))

    def __ne__(self, other: object) -> Any:
        return bool(self._tests.ask("ne", self, other)) if isinstance(other, Remote) else True

    def __hash__(self) -> int:
        return hash(self._tests.ask("hash", self))

    def __repr__(self) -> str:
        return str(self._tests.ask("repr", self))

    def __str__(self) -> str:
        return str(self._tests.ask("str", self))

    def __format__(self, form: str) -> str:
        return str(self._tests.ask("format", self, form))

    def __next__(self) -> Any:
        return self._tests.ask("next", self)

    def __getitem__(self, key: Any) -> Any:
        return self._tests.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._tests.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._tests.ask("delitem", self, key)

    def __contains__(self, item: Any) -> bool:
        if isinstance(item, Remote):
            return bool(self._tests.ask("contains", self, item))
        return any(item is one or item == one for one in iter(self))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Remote) and bool(self._tests.ask("isinstance", instance, self))

    def __enter__(self) -> Any:
        return self._tests.ask("enter", self, made=self._made)

    def __exit__(self, *_: Any) -> None:
        self._tests.ask("exit", self)


def is_function(remote: Remote) -> bool:
    return bool(remote._kind == "function")


def _binary(name: str, *, reflected: bool) -> Callable[[Remote, Any], Any]:
    def operate(self: Remote, other: Any) -> Any:
        both = isinstance(other, Remote)
        if not both and not self._made:
            raise TypeError("an object of the answer's is no value to calculate with")
        value = self._tests.ask(name, *((other, self) if reflected else (self, other)), made=self._made)
        if not both:
            if not isinstance(value, Remote):
                raise TypeError("an object of the answer's and a value make no value")
            object.__setattr__(value, "_mixed", True)
        return value

    return operate


def _ordered(name: str) -> Callable[[Remote, Any], bool]:
    def compare(self: Remote, other: Any) -> bool:
        if not isinstance(other, Remote):
            raise TypeError("an object of the answer's has no order with a value")
        return bool(self._tests.ask(name, self, other))

    return compare


def _unary(name: str, operation: str) -> Callable[..., Any]:
    def operate(self: Remote, *arguments: Any) -> Any:
        if self._mixed and name in NUMERIC:
            raise TypeError("an object of the answer's and a value make no value")
        value = self._tests.ask(operation, self, *arguments, made=self._made)
        return bool(value) if name == "bool" else value

    return operate


for _name, _operation in BINARY.items():
    setattr(Remote, f"__{_name}__", _binary(_operation, reflected=False))
    setattr(Remote, f"__r{_name}__", _binary(_operation, reflected=True))
for _name in ORDER:
    setattr(Remote, f"__{_name}__", _ordered(_name))
for _name, _operation in UNARY.items():
    setattr(Remote, f"__{_name}__", _unary(_name, _operation))


def refill(old: Any, new: Any) -> None:
    """Gives a container the content of another of its kind, in place, and so for the containers inside it."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            for place, (before, after) in enumerate(zip(old, new, strict=True)):
                old[place] = _settled(before, after)
        else:
            old[:] = new
    elif isinstance(old, dict) and isinstance(new, dict):
        values = {key: _settled(old[key], value) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(values)
    elif isinstance(old, set) and isinstance(new, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray) and isinstance(new, bytearray):
        old[:] = new
    elif isinstance(old, deque) and isinstance(new, deque):
        old.clear()
        old.extend(new)


def _settled(before: Any, after: Any) -> Any:
    if type(before) is type(after) and isinstance(before, list | dict | set | bytearray | deque):
        refill(before, after)
        return before
    return after


def run_tests(source: str, tests: Tests) -> None:
    """Runs tests to their end. Raises whatever they raise."""
    tests.begin()
    exec(compile(source, "tests.py", "exec"), Namespace(tests))
