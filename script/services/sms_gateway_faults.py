"""The ways in which the SMS gateway misbehaves, and which request meets which of them."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One way to misbehave. Where it says *sends*, the text goes out although the client is not told so."""

    #: 500, nothing is sent.
    SERVER_ERROR = "server_error"
    #: 503, nothing is sent.
    UNAVAILABLE = "unavailable"
    #: 429 with Retry-After, nothing is sent.
    TOO_MANY = "too_many"
    #: 400, nothing is sent, and never will be.
    BAD_REQUEST = "bad_request"
    #: 422, nothing is sent, and never will be.
    REFUSED = "refused"
    #: 401 although the token is right, nothing is sent.
    UNAUTHORISED = "unauthorised"
    #: 302 to another path of the gateway, nothing is sent.
    REDIRECT = "redirect"
    #: Cuts the connection before it reads the body, nothing is sent.
    CUT_BEFORE = "cut_before"
    #: Reads the request, sends nothing and never answers (the connection stays open for `seconds`).
    NEVER_ANSWER = "never_answer"
    #: Sends, and answers after `seconds`.
    ANSWER_LATE = "answer_late"
    #: Takes the request, and sends only after `seconds`, whether or not the client still waits.
    SEND_LATE = "send_late"
    #: Sends, and answers 500.
    SEND_AND_FAIL = "send_and_fail"
    #: Sends, and cuts the connection before it answers.
    CUT_AFTER = "cut_after"
    #: Sends, and answers 201 with a page that is no JSON.
    GARBAGE = "garbage"
    #: Sends, and answers 201 with half of its JSON, then cuts the connection.
    HALF_AN_ANSWER = "half_an_answer"
    #: Sends, and answers 201, its body byte by byte over `seconds`: no single byte is late.
    SLOW_BODY = "slow_body"


#: What passes by itself: a client that tries again (with the same key) gets its text through.
PASSING = tuple(fault for fault in Fault if fault not in {Fault.BAD_REQUEST, Fault.REFUSED, Fault.UNAUTHORISED})


@dataclass(frozen=True)
class Misbehaviour:
    """A fault, and how long whatever it delays takes: an answer, a body, or the rest that Retry-After asks for."""

    fault: Fault
    seconds: float = 5.0


class Plan:
    """What the next requests meet: first the misbehaviours asked for in turn, then those at random. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, list[tuple[Misbehaviour, int | None]]] = {}
        self._random = random.Random()  # noqa: S311 (not a secret)
        self._chance = 0.0
        self._choices: Sequence[Misbehaviour] = ()

    def misbehave(self, how: Misbehaviour, *, times: int | None, method: str = "POST") -> None:
        """Let the next `times` requests of that method meet it, after those asked for before; None: all from then."""
        with self._lock:
            self._asked.setdefault(method, []).append((how, times))

    def misbehave_at_random(self, choices: Sequence[Misbehaviour], *, chance: float, seed: int) -> None:
        """Let each request to send meet one of `choices` with a chance from 0 to 1. One seed, one sequence."""
        with self._lock:
            self._random.seed(seed)
            self._chance, self._choices = chance, tuple(choices)

    def behave(self) -> None:
        """Forget everything that was asked for."""
        with self._lock:
            self._asked.clear()
            self._chance, self._choices = 0.0, ()

    def next(self, method: str) -> Misbehaviour | None:
        """What the request that has just come meets; None: it is served well."""
        with self._lock:
            if asked := self._asked.get(method):
                how, times = asked[0]
                if times is not None:
                    asked[0] = how, times - 1
                    if times <= 1:
                        asked.pop(0)
                return how
            if method == "POST" and self._choices and self._random.random() < self._chance:
                return self._random.choice(self._choices)
            return None
