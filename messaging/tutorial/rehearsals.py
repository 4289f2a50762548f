"""The check of each lesson: its printed lines, run as they stand, and what has to come of them.

Each takes the stage and a look into the lesson's queues, and returns what it saw, for one line. It raises Otherwise
with what it saw instead. All that a listener printed is compared, to the last line: a message of somebody else, or of
an earlier run, is not taken for ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from messaging.broker.connection import Connection
from messaging.exceptions import OperationRefused
from messaging.tutorial.cleanup import look, made_by, named, remove_all
from messaging.tutorial.lessons import ExchangeMade, Lesson, QueueMade
from messaging.tutorial.stage import Actor, Interrupted, Otherwise, Stage

#: How many messages wait in a queue of the lesson.
Waiting = Callable[[str], int]
Rehearsal = Callable[[Stage, Waiting], str]

#: What to do where somebody has another use for the classic names.
ELSEWHERE = "use another virtual host (AMQP_URL=amqp://…/tutorial)"


def rehearse(connection: Connection, lesson: Lesson, stopped: Callable[[], bool]) -> str:
    """Run the check of `lesson`, and remove what it made. Raises Otherwise, Interrupted, BrokerUnavailable."""

    def waiting(queue: str) -> int:
        (made,) = (each for each in lesson.queues if each.name == queue)
        found = look(connection, made)
        return found.messages if found else 0

    if stopped():
        raise Interrupted
    try:
        new = [made for made in made_by([lesson]) if _is_free(connection, made)]
        try:
            with Stage(lesson.lines, stopped) as stage:
                seen = REHEARSALS[lesson.name](stage, waiting)
        finally:
            left = remove_all(connection, new)
    except OperationRefused as error:
        raise Otherwise(f"RabbitMQ refuses: {error}") from None
    if left:
        raise Otherwise(f"{seen}; but afterwards {'; '.join(left)}")
    return seen


def hello(stage: Stage, waiting: Waiting) -> str:
    stage.run("send")
    before = waiting("hello")
    listed = stage.run("look").out
    if before != 1 or not any(line.startswith("hello\t") for line in listed):
        raise Otherwise(f"queue hello had {before} messages after one was sent, and the list of queues was {listed}")
    [receiver] = stage.start("receive")
    _expect(receiver, "hello\tHello World!")
    stage.wait_for(lambda: waiting("hello") == 0, lambda: f"queue hello still has {waiting('hello')} messages")
    return f"sent 'Hello World!', received it; queue hello had {before} message before and 0 after"


def work_queue(stage: Stage, waiting: Waiting) -> str:
    task = "task_queue\tA dot of work."
    slow, quick = stage.start("slow", "quick")
    stage.run("send")
    slow.wait_for_lines(1)
    quick.wait_for_lines(5)
    slow.kill()
    if slow.out != [task]:
        raise Otherwise(f"the slow worker printed {slow.out} while it had one task to do")
    _expect(quick, *[task] * 6)
    # Stopped over its last, it may have given that one back.
    if (left := waiting("task_queue")) > 1:
        raise Otherwise(f"queue task_queue still has {left} messages")
    return "of 6 tasks the slow worker got 1 and the quick one 5; the slow one was killed, the quick one got that too"


def fanout(stage: Stage, waiting: Waiting) -> str:
    returned = _refused(stage, "nobody", "returned")
    subscribers = stage.start("subscriber 1", "subscriber 2")
    stage.run("send")
    for each in subscribers:
        _expect(each, "\tinfo: Hello World!")
    return f"with nobody listening: {returned}; then 2 subscribers got 'info: Hello World!' each"


def direct(stage: Stage, waiting: Waiting) -> str:
    everything, errors = stage.start("all", "errors")
    stage.run("info")
    stage.run("error")
    _expect(everything, "info\tAll is well.", "error\tRun. Run. Or it will explode.")
    _expect(errors, "error\tRun. Run. Or it will explode.")
    return "who asked for info, warning and error got both messages, who asked for error only the error"


def topic(stage: Stage, waiting: Waiting) -> str:
    kernel, critical = stage.start("kernel", "critical")
    # What a listener must not get goes first: it would come before what it must.
    stage.run("three words")
    stage.run("two words")
    _expect(kernel, "kern.critical\tA critical kernel error")
    _expect(critical, "kern.critical.test\tOnly a test", "kern.critical\tA critical kernel error")
    return "kern.* took kern.critical and not kern.critical.test; *.critical with kern.# took both, each once"


def headers(stage: Stage, waiting: Waiting) -> str:
    every, some = stage.start("all", "any")
    stage.run("one")
    stage.run("both")
    _expect(every, "\tA report to print")
    _expect(some, "\tA drawing to print", "\tA report to print")
    return "format=pdf with kind=report reached both listeners, format=pdf alone only the one that wants any"


def rpc(stage: Stage, waiting: Waiting) -> str:
    stage.start("server")
    calls = [stage.begin(name) for name in ("fib", "centre", "increase")]
    wanted = [
        ["832040"],
        ["10\t55", "20\t6765", "30\t832040", "40\t102334155", "50\t12586269025"],
        ["42"],
    ]
    for call, answers in zip(calls, wanted, strict=True):
        if call.end() != 0 or call.out != answers:
            raise Otherwise(f"`{call.line}` printed {call.out or call.err[-1:]} instead of {answers}")
    return "fib 30 is 832040, five calls at once on one reply queue got each its own answer, increase 41 is 42"


def confirms(stage: Stage, waiting: Waiting) -> str:
    said = stage.run("fits").out
    if said != ["Sent 3: 3 confirmed, 0 returned."]:
        raise Otherwise(f"of 3 messages for a queue with room for 3 the broker's word was {said}")
    full = _refused(stage, "full", "not taken")
    returned = _refused(stage, "nowhere", "returned")
    if (kept := waiting("confirms")) != 3:
        raise Otherwise(f"queue confirms has {kept} messages instead of the 3 that were confirmed")
    return f"3 confirmed and in the queue; a fourth: {full}; one to a queue that is not there: {returned}"


def dead_letters(stage: Stage, waiting: Waiting) -> str:
    [undertaker] = stage.start("undertaker")
    stage.run("send")
    undertaker.wait_for_lines(1)
    undertaker.stop()
    letters = [_facts(line) for line in undertaker.out]
    deaths = [(each.get("body"), *_death(each)) for each in letters]
    if deaths != [("Today only!", "offers", "expired")]:
        raise Otherwise(f"the dead letters were {deaths} (body, queue, reason)")
    return "'Today only!' expired in queue offers after 1 s and came out of expired_offers with that reason"


REHEARSALS: dict[str, Rehearsal] = {
    "hello": hello,
    "work-queue": work_queue,
    "fanout": fanout,
    "direct": direct,
    "topic": topic,
    "headers": headers,
    "rpc": rpc,
    "confirms": confirms,
    "dead-letters": dead_letters,
}


def _is_free(connection: Connection, made: QueueMade | ExchangeMade) -> bool:
    """Return whether nothing of that name stands yet. Raises Otherwise where something stands that is in use, or is
    not as the lessons make it."""
    found = look(connection, made)
    if found is None:
        return True
    if found.differs:
        raise Otherwise(f"{named(made)} {found.differs}: it is somebody's own and was not touched; {ELSEWHERE}")
    if found.consumers:
        raise Otherwise(
            f"queue {made.name} has {found.consumers} consumer{'s' * (found.consumers != 1)}: somebody uses it, "
            f"so it was not touched; stop them, or {ELSEWHERE}"
        )
    if found.messages:
        raise Otherwise(
            f"queue {made.name} holds {found.messages} message{'s' * (found.messages != 1)} from before, so it was not "
            f"touched: `manage.py tutorial --cleanup` removes it, or {ELSEWHERE}"
        )
    return False


def _expect(listener: Actor, *lines: str) -> None:
    """Wait for these lines, stop the listener, and see that there were no others. Raises Otherwise."""
    listener.wait_for_lines(len(lines))
    listener.stop()
    if listener.out != list(lines):
        raise Otherwise(f"`{listener.line}` printed {listener.out} instead of {list(lines)}: does somebody else send?")


def _refused(stage: Stage, name: str, how: str) -> str:
    """Run a line that has to be refused; return how it was, in the command's own words. Raises Otherwise."""
    actor = stage.begin(name)
    code = actor.end()
    told = actor.last_words
    if code != 1 or not told.lower().startswith(how):
        raise Otherwise(f"`{actor.line}` should have been {how}; it ended with {code}: {told}")
    return re.split("[.;]", told)[0]


def _facts(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"body": line}


def _death(letter: dict[str, Any]) -> tuple[Any, Any]:
    match letter.get("headers"):
        case {"x-death": [{"queue": queue, "reason": reason}, *_]}:
            return queue, reason
    return None, None
