"""Questions from the tests' side to the program's process, and what stands there for a value of it."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lpo_ray.verifiers.sandbox.inside.wire import DEPTH, IN_PLACE, Unsendable, Writer, read

_SPOKEN = ("__name__", "__doc__")
"""attributes with such names that are asked for; libraries look for others to treat a value as one of theirs"""

_ORDERS = ("lt", "le", "gt", "ge")
_OPERATORS = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift",
    *_ORDERS,
)  # fmt: skip


class Lost(BaseException):
    """Error when the program's process is gone or talks nonsense. No Exception, so that a test's ``except Exception``
    does not take it for what the program raised.
    """


class Link:
    """Questions to the program's process."""

    def __init__(self, read_fd: int, write_fd: int, most: int) -> None:
        """``most``: bytes of an answer."""
        self._answers, self._questions, self._most = os.fdopen(read_fd, "rb"), os.fdopen(write_fd, "wb", 0), most
        self.classes: dict[str, type] = {}
        """those whose instances cross by value"""
        self._errors: dict[int, type[Exception]] = {}
        """what stands for the program's own kinds of error, by number"""
        self.asked = 0
        """questions so far"""
        self.lost = ""
        """why, once it is"""
        self.raised: BaseException | None = None
        """what the program raised last"""

    def started(self, ready: bytes) -> bool:
        """Tell whether the sandbox of the program's process works."""
        return self._answers.read(len(ready)) == ready

    def ask(self, *question: Any) -> Any:  # noqa: ANN401 - any value
        """Ask the program; return the answer, or raise what it raised, as builtin types have it."""
        self.asked += 1
        if not self.lost:
            try:
                self._questions.write(json.dumps(question).encode() + b"\n")
            except OSError:
                self.lost = "the program ended"
        return self.answer()

    def change(
        self, function: StandIn, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """Call the program's function; return its value, and what became of the arguments. Objects in them are the same
        ones, with their new attributes. All stay what they were where they are too large or too deep for an answer.
        """
        called = {"value": {"h": _number(function)}}
        writer = Writer(_number, self.classes, 3 * DEPTH)
        asked = writer.message((args, kwargs))
        try:
            fits = len(json.dumps(Writer(_number, self.classes).message([args, kwargs]))) <= self._most // 2
        except Unsendable:
            fits = False
        if not fits:
            return self.ask("call", called, self.written(args), self.written(kwargs)), args, kwargs
        answer = self.ask("change", called, asked)
        if isinstance(answer, tuple) and len(answer) == 4:
            value, changed, by_name, objects = answer
            are_whole = isinstance(changed, tuple) and isinstance(by_name, dict) and isinstance(objects, tuple)
            if are_whole and len(changed) == len(args) and len(objects) == len(writer.objects):
                same = Same(zip(objects, writer.objects, strict=True))
                changed, by_name = same.of(changed), same.of(by_name)
                return same.of(value), changed, {name: by_name.get(name, old) for name, old in kwargs.items()}
        self.lost = "the program's process gives no proper answers"
        raise Lost(self.lost)

    def answer(self) -> Any:  # noqa: ANN401 - any value
        """Read the answer to the question before."""
        value: Any = None
        is_error = False
        if not self.lost:
            line = self._answers.readline(self._most + 1)
            try:
                answer = json.loads(line)
                is_error = "error" in answer
                value = (
                    self._error(*answer["error"]) if is_error else read(answer, self._stand_in, self.classes, IN_PLACE)
                )
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError, ImportError):
                self.lost = "the program ended" if not line else "the program's process gives no proper answers"
        if self.lost:
            raise Lost(self.lost)
        if is_error:
            self.raised = value
            raise value
        return value

    def written(self, value: Any) -> dict[str, Any]:  # noqa: ANN401 - any value
        """Write a value for the program's side: deeper than the program may, so that no answer of its is too deep."""
        return Writer(_number, self.classes, 3 * DEPTH).message(value)

    def _stand_in(self, number: int, error: str | None = None) -> Any:  # noqa: ANN401 - any value
        if error is None:
            return StandIn(self, number)
        if number not in self._errors:
            made: Any = type("ProgramError", (_builtin_error(error) or RuntimeError,), {})
            self._errors[number] = made
        return self._errors[number]

    def _error(self, name: str, text: str, known: list[int]) -> Exception:
        """Make the error that the program raised: of its own class, if the tests have that, or else a builtin one."""
        own = [self._errors[number] for number in known if number in self._errors]
        kind = own[0] if own else _builtin_error(name)
        try:
            return kind(str(text)) if kind is not None else RuntimeError(f"{name}: {text}")
        except TypeError:
            return RuntimeError(f"{name}: {text}")


class Same:
    """The tests' own objects in place of what came back for them, with the attributes that came back."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """``pairs``: what came back, and the tests' own."""
        self._own: dict[int, Any] = {}
        came_back = [(new, old) for new, old in pairs if type(new) is type(old)]
        for new, old in came_back:
            self._own[id(new)] = old
        for new, old in came_back:
            attributes = {name: self.of(value) for name, value in new.__dict__.items()}
            old.__dict__.clear()
            old.__dict__.update(attributes)
        self._kept = came_back  # an id is one object's as long as that lives

    def of(self, value: Any) -> Any:  # noqa: ANN401 - any value
        """Return the value with them in it."""
        if id(value) in self._own:
            return self._own[id(value)]
        if isinstance(value, dict):
            return type(value)((self.of(key), self.of(part)) for key, part in value.items())
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(map(self.of, value))
        if type(value) is not StandIn and hasattr(value, "__dict__") and not isinstance(value, type):
            self._own[id(value)] = value  # one that the program made
            for name, part in list(value.__dict__.items()):
                value.__dict__[name] = self.of(part)
        return value


class StandIn:
    """A value of no plain type in the program's process. Equal to nothing but itself."""

    def __init__(self, link: Link, number: int) -> None:
        self.__dict__.update(_link=link, _number=number, _makes=False, _is_made=False)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any value
        if name.startswith("__") and name not in _SPOKEN:
            raise AttributeError(f"a value of the program's has no {name} here")
        return self._asked("get", name)

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - any value
        self._asked("set", name, self._link.written(value))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any value
        """Call the program's function by value; its answer comes by value too."""
        found = self._asked("call", self._link.written(args), self._link.written(kwargs))
        return _made(found) if self._makes else found

    def __iter__(self) -> Iterator[Any]:
        items = self._method("__iter__")
        while True:
            try:
                yield items._method("__next__") if isinstance(items, StandIn) else next(items)
            except RuntimeError as error:
                if str(error).startswith("StopIteration"):
                    return
                raise

    def __len__(self) -> int:
        return self._method("__len__")

    def __bool__(self) -> bool:
        try:
            return len(self) > 0
        except TypeError:
            return True

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - any value
        return self._method("__getitem__", key)

    def __setitem__(self, key: Any, value: Any) -> None:  # noqa: ANN401 - any value
        self._method("__setitem__", key, value)

    def __next__(self) -> Any:  # noqa: ANN401 - any value
        try:
            return self._method("__next__")
        except RuntimeError as error:
            if str(error).startswith("StopIteration"):
                raise StopIteration from None
            raise

    def __enter__(self) -> Any:  # noqa: ANN401 - any value
        return self._method("__enter__")

    def __exit__(self, *error: object) -> None:
        """Leave the program's context; it learns of no error, whose text may have expected values, and hides none."""
        self._method("__exit__", None, None, None)

    def __str__(self) -> str:
        return str(self._asked("text"))

    __repr__ = __str__

    def _method(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - any value
        try:
            method = self._asked("get", name)
        except AttributeError as error:
            raise TypeError(str(error)) from None  # as list() expects of what has no length
        return method(*args)

    def _asked(self, what: str, *rest: Any) -> Any:  # noqa: ANN401 - any value
        return self._link.ask(what, {"value": {"h": self._number}}, *rest)


def makes_objects(value: Any, name: str) -> Any:  # noqa: ANN401 - any value
    """Mark what tests call by a class's name, such as Vector: what it makes has operators with other operands."""
    if type(value) is StandIn and name[:1].isupper() and "_" not in name:
        value.__dict__["_makes"] = True
    return value


def _made(value: Any) -> Any:  # noqa: ANN401 - any value
    if type(value) is StandIn:
        value.__dict__["_is_made"] = True
    return value


def _operator(name: str, *, reflected: bool = False) -> Callable[[StandIn, Any], Any]:
    """Make an operator of two values of the program's. Any other operand may be what a test expects, unless the object
    is of a class that the tests name, and the result another object: a number would be the program's own verdict.
    """

    def operate(own: StandIn, other: Any) -> Any:  # noqa: ANN401 - any value
        if isinstance(other, StandIn):
            return own._asked("operate", own._link.written(other), name)
        if not own._is_made or name in _ORDERS:
            return NotImplemented
        sides = own._link.written(own), own._link.written(other)
        found = own._link.ask("operate", *(reversed(sides) if reflected else sides), name)
        if type(found) is not StandIn:
            raise TypeError(f"{name} of an object of the program's and a value of the tests gives a value")
        return _made(found)

    return operate


for _name in _OPERATORS:
    setattr(StandIn, f"__{_name.strip('_')}__", _operator(_name))
    if _name not in _ORDERS:
        setattr(StandIn, f"__r{_name.strip('_')}__", _operator(_name, reflected=True))


def _number(value: Any) -> int:  # noqa: ANN401 - any value
    if isinstance(value, StandIn):
        return value.__dict__["_number"]
    raise Unsendable(f"a test passes a {type(value).__name__} to the program, which is in another process")


def _builtin_error(name: str) -> type[Exception] | None:
    """Return the builtin error of that name; None for a StopIteration, say, which would end the loop of a test such as
    ``all(map(f, xs))`` as if all had passed.
    """
    kind = getattr(builtins, str(name), None)
    is_one = isinstance(kind, type) and issubclass(kind, Exception) and "Iteration" not in name and "Group" not in name
    return kind if is_one else None
