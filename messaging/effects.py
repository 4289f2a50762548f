"""Effects: what follows from a message outside the database, such as a text message or a payment.

Here they are declared; the worker carries them out and records them in its ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured

from messaging.exceptions import UnknownEffect
from messaging.logs import get_logger
from messaging.registry import Registry
from messaging.retry import RetryPolicy, check_times
from messaging.validation import functions, texts

log = get_logger(__name__)

#: Longest name, as the ledger stores it.
MAX_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One attempt at an effect, as its function sees it.

    `key` is the same at each attempt and no other effect has it: a gateway that honours keys does the work once for it.
    `timeout` is how many seconds the function has; a later answer is not waited for.
    """

    key: str
    payload: dict[str, Any]
    attempt: int
    timeout: float
    message_id: str


#: Carries it out and returns the gateway's reference for it (or None).
Send = Callable[[Sending], str | None]
#: Returns the gateway's reference if it was done before, None if it surely was not.
Ask = Callable[[Sending], str | None]
AnySend = TypeVar("AnySend", bound=Send)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectKind:
    """A declared effect: how it is carried out and retried, and what settles one in doubt."""

    name: str
    send: Send
    ask: Ask | None = None
    honours_keys: Callable[[], bool] = field(default=lambda: False)
    timeout: timedelta = timedelta(seconds=10)
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    @property
    def can_repeat(self) -> bool:
        """Whether one in doubt can be settled without a person."""
        return self.honours_keys() or self.ask is not None


@dataclass(frozen=True, slots=True)
class Intended:
    """An effect to carry out once the handler's transaction has committed."""

    name: str
    payload: dict[str, Any]


registry: Registry[EffectKind] = Registry(
    "effect", name_of=lambda kind: kind.name, defined_by=lambda kind: kind.send, unknown=UnknownEffect
)
get, registered = registry.get, registry.all


def effect(
    name: str,
    *,
    ask: Ask | None = None,
    honours_keys: bool | Callable[[], bool] = False,
    timeout: timedelta = timedelta(seconds=10),
    retry: RetryPolicy | None = None,
) -> Callable[[AnySend], AnySend]:
    """Declare that the decorated function carries out the effect `name`.

    It is called as `function(sending)`, outside any transaction, and returns the gateway's reference for what was done.
    It raises `NotDone` (surely not done: tried again by `retry`), `RetryLater` (likewise, after a time), or `Reject`
    (surely not done, and never will be). After any other exception, a timeout included, the effect is in doubt. It is
    then sent again with the same key if the gateway `honours_keys`; else `ask` is called if there is one; else it is
    *unknown*: a person settles it, and it is never sent again blindly.

    `honours_keys` may be a function, called each time; if it raises, or returns anything but True, the answer is no.

    No return value makes an effect doubtful: a number or id becomes text, and anything else is recorded as well as
    possible. Only a coroutine or generator is an error: its work did not run, and what ran before is not known. `ask`
    returns a text, number or id if the effect was done, and None if it surely was not; after any other answer (True,
    False, an empty text) it stays in doubt.

    Raises ImproperlyConfigured for a bad or taken name, a function that cannot be called as above or would not run
    (`async def`, a generator), and other options of the wrong kind.
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
        # Keys join message id, consumer and name by ":": two effects could have the same.
        raise ImproperlyConfigured(f"effect name {name!r}: no ':'")
    check_times(f"effect {name!r}", timeout or timedelta(0), retry)
    if ask is not None:
        functions.check(ask, f"`ask` of effect {name!r}", takes="sending")
    if not isinstance(honours_keys, bool):
        functions.check(honours_keys, f"`honours_keys` of effect {name!r}, if not True or False,", takes="")

    def register(send: AnySend) -> AnySend:
        functions.check(send, f"the function of effect {name!r}", takes="sending")
        registry.add(
            EffectKind(
                name=name,
                send=send,
                ask=ask,
                honours_keys=_safely(name, honours_keys),
                timeout=timeout,
                retry=retry or RetryPolicy(),
            )
        )
        return send

    return register


def _safely(name: str, honours_keys: bool | Callable[[], bool]) -> Callable[[], bool]:
    def answer() -> bool:
        try:
            found: object = honours_keys() if callable(honours_keys) else honours_keys
            functions.require_run(found, "it")
            if not isinstance(found, bool):
                raise TypeError(f"it returned {functions.kind_of(found)}; it returns True or False")
        except BaseException:
            # Neither may this end the thread, nor may effects of other names wait until it is repaired.
            log.exception("effect.honours_keys_failed", effect=name)
            return False
        return found

    return answer


def intended(name: str, payload: dict[str, Any], *, beside: Sequence[Intended]) -> Intended:
    """Return an effect that a handler intends, checked.

    Raises UnknownEffect, and ValueError for a second one of that name `beside` it, and a payload that is no dict, or
    that JSON or a database would change.
    """
    kind = get(name)
    if any(other.name == name for other in beside):
        raise ValueError(f"the effect {name!r} was intended before; a message has one of each name")
    if not isinstance(payload, dict):
        raise ValueError(f"the payload of effect {name!r} is a dict, not {type(payload).__name__}")
    # Checked here, where the handler's line is in the traceback, and not when the row is written.
    texts.checked_json(f"the payload of effect {name!r}", payload)
    # A copy: the handler may change its dict later.
    return Intended(kind.name, json.loads(json.dumps(payload)))
