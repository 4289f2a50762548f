"""Functions of a project, such as handlers, effects and upcasts: checked when they are declared, and when they return.
One that did not run must never count as done."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterator
from concurrent.futures import Future
from contextlib import AsyncContextDecorator, ContextDecorator, suppress
from functools import partial
from typing import Any, get_type_hints

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured

from messaging.exceptions import NotRun

_ASYNC_CURE = "Write a plain `def`, and call async code in it as `async_to_sync(function)(…)` (asgiref.sync)."


def check(function: Any, what: str, *, takes: str) -> None:
    """Raise ImproperlyConfigured for a function that cannot be called as `function(<takes>)`, or that would return
    before its work has run.

    `what` names it in the error; `takes` lists its arguments, such as "event, delivery".
    """
    cure = f"Write `def name({takes}): …`."
    if not callable(function):
        raise ImproperlyConfigured(f"{what} is {kind_of(function)}, and no function. {cure}")
    if isinstance(function, type):
        raise ImproperlyConfigured(
            f"{what} is the class {function.__qualname__}: calling it only makes an object. {cure}"
        )
    check_runs(function, what)
    if _is(inspect.isgeneratorfunction, function):
        raise ImproperlyConfigured(f"{what} is a generator, as it has `yield`: calling it runs nothing. {cure}")
    try:
        inspect.signature(function).bind(*filter(None, takes.split(", ")))
    except TypeError as error:
        raise ImproperlyConfigured(f"{what} cannot be called as {path(function)}({takes}): {error}. {cure}") from None
    except ValueError:
        return  # written in C, and without a signature


def check_runs(function: Any, what: str) -> None:
    """Raise ImproperlyConfigured for an async function or an async generator: calling one runs nothing."""
    for kind, name in ((iscoroutinefunction, "function"), (inspect.isasyncgenfunction, "generator")):
        if _is(kind, function):
            raise ImproperlyConfigured(f"{what} is an async {name}: calling it runs nothing. {_ASYNC_CURE}")


def require_run(answer: object, what: str) -> None:
    """Raise NotRun if a function returned work that has not run, and close it: a coroutine, a generator, `map` or
    `filter`, also in a list or dict; a context manager, a function that was not called."""
    if answer is None:
        return
    require_awaited(answer, what)
    # Not every iterator: an open file has nothing to run, and a MagicMock in a project's tests counts as one. Likewise
    # AsyncGenerator below.
    idle: list[object] = [each for each in _parts(answer) if isinstance(each, Generator | map | filter)]
    if isinstance(answer, ContextDecorator | AsyncContextDecorator):
        idle.append(answer)
    for each in idle:
        _close(each)
    if idle:
        raise NotRun(
            f"{what} returned {kind_of(idle[0])}, whose work did not run. Run it to its end before you return."
        )
    if inspect.isroutine(answer) or isinstance(answer, partial):
        raise NotRun(
            f"{what} returned {kind_of(answer)} that was not called. Call it, or look for a decorator without its "
            "brackets."
        )


def require_awaited(answer: object, what: str) -> None:
    """Raise NotRun if a function returned something to await or wait for, or a list or dict of such, and close it."""
    waiting = [each for each in _parts(answer) if isinstance(each, Awaitable | AsyncGenerator | Future)]
    for each in waiting:
        _close(each)
    if waiting and isinstance(waiting[0], Future):
        raise NotRun(f"{what} returned a Future, whose work may not have run. Wait for it: `future.result()`.")
    if waiting:
        raise NotRun(f"{what} returned {kind_of(waiting[0])}, which was not awaited. {_ASYNC_CURE}")


def path(function: Any) -> str:
    """Return where a function was defined: module and name. Of a partial that is its function, of a callable object its
    class."""
    return f"{module(function)}.{name(function)}"


def module(function: Any) -> str:
    """Return the name of the module in which a function was defined; see `path`."""
    return str(_defined(function).__module__)


def name(function: Any) -> str:
    """Return the name by which a function was defined; see `path`."""
    return str(_defined(function).__qualname__)


def type_hints(function: Any) -> dict[str, Any]:
    """Return the annotations of a function, as types. Raises NameError for an unknown name."""
    function = _within_partials(function)
    hinted = function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
    return get_type_hints(hinted, include_extras=True)


def kind_of(value: object) -> str:
    """Return the name of the value's type, with its article: "a list"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def text_of(value: object) -> str:
    """Return `str(value)`, or else a description. Never raises."""
    for written in (str, repr):
        with suppress(BaseException):
            return written(value)
    return f"({kind_of(value)} whose text cannot be made)"


def _parts(answer: object, levels: int = 3) -> Iterator[object]:
    """Yield an answer, and what is in it if it is a list, a dict or the like."""
    yield answer
    if levels and isinstance(answer, list | tuple | set | frozenset | dict):
        for each in answer.values() if isinstance(answer, dict) else answer:
            yield from _parts(each, levels - 1)


def _within_partials(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function


def _defined(function: Any) -> Any:
    function = _within_partials(function)
    return function if hasattr(function, "__qualname__") else type(function)


def _is(kind: Any, function: Any) -> bool:
    function = _within_partials(function)
    # Of a callable object its method counts.
    called = getattr(type(function), "__call__", None)  # noqa: B004
    return bool(kind(function) or (not inspect.isroutine(function) and kind(called)))


def _close(answer: object) -> None:
    """Close work that will not run, so that Python does not warn of it."""
    with suppress(BaseException):
        if isinstance(answer, asyncio.Future | Future):
            answer.cancel()
        elif inspect.iscoroutine(answer) or inspect.isgenerator(answer):
            answer.close()
