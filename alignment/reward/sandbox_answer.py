"""The process of the answer in :mod:`alignment.reward.sandbox`: it runs a program, then does what the tests ask of it.

It is loaded by path inside the sandbox. It knows nothing of the tests but the calls that they make, and holds no pipe
but the two to their process; what the program does to this process, to its frames or to its built-ins stays here.
"""

import operator
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift",
        "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "abs", "index", "truth", "getitem", "setitem",
        "delitem", "contains",
    )
} | {
    "len": len, "iter": iter, "next": next, "reversed": reversed, "hash": hash, "repr": repr, "str": str, "int": int,
    "float": float, "round": round, "format": format, "isinstance": isinstance, "getattr": getattr, "setattr": setattr,
    "delattr": delattr,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager: type(manager).__exit__(manager, None, None, None),
}  # fmt: skip


class Answerer:
    """Serves the objects of a program's namespace over a :class:`Wire`."""

    def __init__(self, wire: Any, codec: Any, namespace: dict[str, Any]) -> None:
        self.wire, self.codec, self.namespace = wire, codec, namespace
        self.objects: list[Any] = []

    def serve(self) -> None:
        """Does what the tests ask until they are over."""
        while True:
            self.wire.send(self.reply(self.wire.receive()))

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """The response to one request: a value, and containers among its arguments that the program changed."""
        try:
            if request["op"] == "name":
                name = request["name"]
                return {"ok": self.encode(self.namespace[name])} if name in self.namespace else {"missing": True}
            arguments = [self.decode(one) for one in request["args"]]
            named = {name: self.decode(one) for name, one in request.get("kwargs", {}).items()}
            value = self._done(request["op"], arguments, named)
            changed = [self._changed(old, new) for old, new in zip(request["args"], arguments, strict=True)]
            more = {name: self._changed(request["kwargs"][name], new) for name, new in named.items()}
            return {"ok": self.encode(value), "args": changed, "kwargs": more}
        except self.codec.Ended:
            raise
        except BaseException as error:  # SystemExit too: the tests decide what an exception means
            return {"error": self._error(error)}

    def _done(self, op: str, arguments: list[Any], named: dict[str, Any]) -> Any:
        if op == "call":
            return arguments[0](*arguments[1:], **named)
        return OPERATIONS[op](*arguments)

    def encode(self, value: Any) -> Any:
        """A value for the tests: a copy, or a handle with what they may do with it."""

        def handle(one: Any) -> dict[str, Any]:
            if isinstance(one, Foreign):
                return {"y": one._number, "k": "yours"}
            self.objects.append(one)
            found: dict[str, Any] = {"x": len(self.objects) - 1, "k": _kind(one)}
            if found["k"] == "exception":
                found |= {"name": one.__name__, "base": self.codec.base_of(one)}
            return found

        return self.codec.encoded(value, handle)

    def decode(self, value: Any) -> Any:
        """A value of the tests: a copy, an object of this process that came home, or a stand-in for one of theirs."""

        def handle(told: dict[str, Any]) -> Any:
            return self.objects[told["y"]] if "y" in told else Foreign(self, told["x"], told["k"])

        return self.codec.decoded(value, handle)

    def ask(self, op: str, number: int, *arguments: Any, **named: Any) -> Any:
        """Asks the tests' process something about an object of theirs that they passed."""
        more = {name: self.encode(one) for name, one in named.items()}
        self.wire.send({"op": op, "of": number, "args": [self.encode(one) for one in arguments], "kwargs": more})
        while "op" in (message := self.wire.receive()):
            self.wire.send(self.reply(message))
        if "error" in message:
            raise getattr(__import__("builtins"), message["error"][0])(message["error"][1])
        return self.decode(message["ok"])

    def _changed(self, before: Any, now: Any) -> Any:
        """A container's new content, where it is another than what was sent; else None."""
        if not isinstance(before, dict) or before.keys() & {"x", "y"}:
            return None
        after = self.encode(now)
        return after if after != before else None

    def _error(self, error: BaseException) -> list[Any]:
        kind = type(error)
        own = self.encode(kind) if kind.__module__ != "builtins" else None
        try:
            text = str(error)[:2000]
        except BaseException:  # the program's own __str__
            text = ""
        return [self.codec.base_of(kind), text, own]


class Foreign:
    """An object of the tests' process, as the program sees it: a function, an iterator, or an instance's attributes."""

    def __init__(self, answerer: Answerer, number: int, kind: str) -> None:
        self.__dict__.update(_answerer=answerer, _number=number, _kind=kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._answerer.ask("call", self._number, *arguments, **named)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._answerer.ask("next", self._number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._answerer.ask("getattr", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._answerer.ask("setattr", self._number, name, value)


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    if isinstance(value, ModuleType):
        return "module"
    return "function" if isinstance(value, FunctionType | BuiltinFunctionType) else "object"


def run_answer(source: str, wire: Any, codec: Any) -> None:
    """Runs a program, says how it ended, and serves what it defined until the tests are over."""
    namespace: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    answerer = Answerer(wire, codec, namespace)
    try:
        exec(compile(source, "answer.py", "exec"), namespace)
    except BaseException as error:  # SystemExit too: a program that leaves has not passed its tests
        wire.send({"error": answerer._error(error)})
        return
    wire.send({"ok": None})
    answerer.serve()
