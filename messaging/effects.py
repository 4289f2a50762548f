"""Effects: what follows from a message outside the database, a text or a payment. A declaration; `sending` is what
carries them out, and `ledger` knows how far each has come."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from messaging.exceptions import UnknownEffect
from messaging.logs import get_logger
from messaging.retry import RetryPolicy, is_limit
from messaging.validation import functions, texts

log = get_logger(__name__)

#: Longest name, as the ledger stores it.
MAX_NAME_LENGTH = 100

_registry: dict[str, EffectKind] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One attempt at an effect, as its function sees it.

    `key` is the same at each attempt and of no other effect: a gateway that honours keys does the work once for it.
    `timeout` is how many seconds the function has; an answer after that is not waited for.
    """

    key: str
    payload: dict[str, Any]
    attempt: int
    timeout: float
    message_id: str


#: Does it, and returns what the outside calls it (or None).
Send = Callable[[Sending], str | None]
#: Returns what the outside calls it if it was done before, None if it surely was not.
Ask = Callable[[Sending], str | None]
AnySend = TypeVar("AnySend", bound=Send)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectKind:
    """A declared effect: how it is done, how often it is tried, and what is known of one whose answer was lost."""

    name: str
    send: Send
    ask: Ask | None = None
    honours_keys: Callable[[], bool] = field(default=lambda: False)
    timeout: timedelta = timedelta(seconds=10)
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def can_repeat(self) -> bool:
        """Whether one that may have been done can be looked after without a person."""
        return self.honours_keys() or self.ask is not None


@dataclass(frozen=True, slots=True)
class Intended:
    """What a handler wants done once its transaction has committed."""

    name: str
    payload: dict[str, Any]


def effect(
    name: str,
    *,
    ask: Ask | None = None,
    honours_keys: bool | Callable[[], bool] = False,
    timeout: timedelta = timedelta(seconds=10),
    retry: RetryPolicy | None = None,
) -> Callable[[AnySend], AnySend]:
    """Declare the decorated function as what does the effect `name`.

    It is called as `function(sending)`, outside any transaction, and returns what the outside calls the thing that
    was done. It raises `NotDone` (surely not done: again by `retry`), `RetryLater` (likewise, after a time), `Reject`
    (surely not done, and never will be), and anything else, a time-out included, where it may have been done or not.
    Such a doubtful one is sent again with the same key if the outside `honours_keys`; else the outside is asked if
    there is `ask`; else it is *unknown*, for a person to settle, and never sent again blindly.

    `honours_keys` may be a function, asked each time; while it raises, or returns anything but True, the answer is no.

    What the function returns never makes an effect that was done doubtful: a number or id becomes its text, anything
    else is written down as well as it can be. Only a coroutine or generator is an error: its work did not run, and
    what ran before is not known. `ask` returns a text, number or id where it was done, and None where it surely was
    not; any other answer (True, False, an empty text) tells neither, and the effect stays doubtful.

    Raises ImproperlyConfigured for a bad or taken name, a function that cannot be called as above or would not run
    (`async def`, a generator), and for other options of the wrong kind.
    """
    if not isinstance(name, str):
        raise ImproperlyConfigured(f'an effect has a name: write @effect("receipt_mail"), not {name!r:.100}')
    if not name:
        raise ImproperlyConfigured("the name of an effect is empty")
    try:
        texts.checked(f"effect name {name!r:.40}", name, characters=MAX_NAME_LENGTH)
    except ValueError as error:
        raise ImproperlyConfigured(str(error)) from None
    if ":" in name:
        # Keys are made of message id, consumer and name, with one between: two effects could have the same.
        raise ImproperlyConfigured(f"effect name {name!r}: no ':'")
    if not is_limit(timeout):
        raise ImproperlyConfigured(f"effect {name!r}: timeout is a positive time, such as timedelta(seconds=10)")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ImproperlyConfigured(f"effect {name!r}: retry is a RetryPolicy, such as RetryPolicy(max_attempts=5)")
    if retry is not None:
        functions.check_runs(retry.delay_after, f"delay_after of the retry policy of effect {name!r}")
    if ask is not None:
        functions.check(ask, f"`ask` of effect {name!r}", takes="sending")
    if not isinstance(honours_keys, bool):
        functions.check(honours_keys, f"`honours_keys` of effect {name!r}, if not True or False,", takes="")
    asked = _asked(name, honours_keys)

    def register(send: AnySend) -> AnySend:
        functions.check(send, f"the function of effect {name!r}", takes="sending")
        other = _registry.get(name)
        if other is not None and functions.path(other.send) != functions.path(send):
            raise ImproperlyConfigured(
                f"two effects are named {name!r}: {functions.path(other.send)}, {functions.path(send)}"
            )
        _registry[name] = EffectKind(
            name=name, send=send, ask=ask, honours_keys=asked, timeout=timeout, retry=retry or RetryPolicy()
        )
        return send

    return register


def _asked(name: str, honours_keys: bool | Callable[[], bool]) -> Callable[[], bool]:
    def answer() -> bool:
        try:
            found: object = honours_keys() if callable(honours_keys) else honours_keys
            functions.require_run(found, "it")
            if not isinstance(found, bool):
                raise TypeError(f"it returned {functions.kind_of(found)}; it returns True or False")
        except BaseException:
            # The effects of other names must not wait until somebody has mended this one; nor may it end the thread.
            log.exception("effect.honours_keys_failed", effect=name)
            return False
        return found

    return answer


def get(name: str) -> EffectKind:
    """Return the effect of that name. Raises UnknownEffect, listing the names that exist."""
    try:
        return _registry[name]
    except KeyError:
        known = ", ".join(sorted(_registry)) or "none"
        raise UnknownEffect(f"There is no effect {name!r}. Registered: {known}.") from None


def registered() -> list[EffectKind]:
    """Return every effect, by name."""
    return [_registry[name] for name in sorted(_registry)]


def intended(name: str, payload: dict[str, Any], *, beside: Sequence[Intended]) -> Intended:
    """Return what a handler intends, checked. Raises UnknownEffect, and ValueError for a second one of that name
    `beside` it or a payload that is no dict, or not JSON that every database stores and that is read as it was."""
    kind = get(name)
    if any(other.name == name for other in beside):
        raise ValueError(f"the effect {name!r} was intended before; a message has one of each name")
    if not isinstance(payload, dict):
        raise ValueError(f"the payload of effect {name!r} is a dict, not {type(payload).__name__}")
    # Here, where the handler's line is in the traceback, and not when the row is written.
    texts.checked_json(f"the payload of effect {name!r}", payload)
    # As it is now, whatever the handler does with its dict after this.
    return Intended(kind.name, json.loads(json.dumps(payload)))
