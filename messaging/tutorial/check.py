"""The check of each lesson: run its printed lines, and compare what they show.

Each takes the lesson's terminals, and returns in one line what it saw; it raises Failed with what it saw instead. Every
line that a listener printed is compared: a message of another client, or of an earlier run, must not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from messaging.broker.connection import Connection
from messaging.exceptions import OperationRefused
from messaging.tutorial.cleanup import counted, look, remove_all
from messaging.tutorial.lessons import Lesson, Made
from messaging.tutorial.terminals import Failed, Interrupted, Terminal, Terminals, terminals_of, wait_for


def check(connection: Connection, lesson: Lesson, stopped: Callable[[], bool]) -> str:
    """Run the check of `lesson`, and remove what it made. Raises Failed, Interrupted, BrokerUnavailable."""

    def waiting(queue: str) -> int:
        (made,) = (each for each in lesson.made if each.name == queue)
        found = look(connection, made)
        return found.messages if found else 0

    if stopped():
        raise Interrupted
    try:
        new = [made for made in lesson.made if _is_free(connection, made)]
        try:
            with terminals_of(lesson.lines, waiting, stopped) as terminals:
                seen = CHECKS[lesson.name](terminals)
        finally:
            left = remove_all(connection, new)
    except OperationRefused as error:
        raise Failed(f"RabbitMQ refuses: {error}") from None
    if left:
        raise Failed(f"{seen}; but afterwards {'; '.join(left)}")
    return seen


def hello(terminals: Terminals) -> str:
    terminals.run("send")
    before, seen = terminals.waiting("hello"), terminals.run("look")
    if before != 1 or seen != ["hello\tHello World!"]:
        raise Failed(f"queue hello had {before} messages after one was sent, and a look at it showed {seen}")
    [receiver] = terminals.start("receive")
    _expect(receiver, "hello\tHello World!")
    wait_for(
        lambda: not terminals.waiting("hello"),
        terminals.stopped,
        lambda: f"queue hello still has {terminals.waiting('hello')} messages",
    )
    return f"sent 'Hello World!', received it; queue hello had {before} message before and 0 after"


def work_queue(terminals: Terminals) -> str:
    task = "task_queue\tA dot of work."
    slow, quick = terminals.start("slow", "quick")
    terminals.run("send")
    slow.wait_for_lines(1)
    quick.wait_for_lines(5)
    slow.kill()
    if slow.out != [task]:
        raise Failed(f"the slow worker printed {slow.out} while it had one task to do")
    _expect(quick, *[task] * 6)
    # Stopped over its last, it may have given that one back.
    if (left := terminals.waiting("task_queue")) > 1:
        raise Failed(f"queue task_queue still has {left} messages")
    return "of 6 tasks the slow worker got 1 and the quick one 5; the slow one was killed, the quick one got that too"


def fanout(terminals: Terminals) -> str:
    returned = _refused(terminals, "nobody", "returned")
    subscribers = terminals.start("subscriber 1", "subscriber 2")
    terminals.run("send")
    for each in subscribers:
        _expect(each, "\tinfo: Hello World!")
    return f"without a listener: {returned}; then 2 subscribers got 'info: Hello World!' each"


def direct(terminals: Terminals) -> str:
    everything, errors = terminals.start("all", "errors")
    terminals.run("info")
    terminals.run("error")
    _expect(everything, "info\tAll is well.", "error\tRun. Run. Or it will explode.")
    _expect(errors, "error\tRun. Run. Or it will explode.")
    return "the listener to info, warning and error got both messages, the listener to error only the error"


def topic(terminals: Terminals) -> str:
    kernel, critical = terminals.start("kernel", "critical")
    # What a listener must not get goes first: it would come before what it must.
    terminals.run("three words")
    terminals.run("two words")
    _expect(kernel, "kern.critical\tA critical kernel error")
    _expect(critical, "kern.critical.test\tOnly a test", "kern.critical\tA critical kernel error")
    return "kern.* took kern.critical and not kern.critical.test; *.critical with kern.# took both, each once"


def headers(terminals: Terminals) -> str:
    every, some = terminals.start("all", "any")
    terminals.run("one")
    terminals.run("both")
    _expect(every, "\tA report to print")
    _expect(some, "\tA drawing to print", "\tA report to print")
    return "format=pdf with kind=report reached both listeners, format=pdf alone only the one that wants any"


def rpc(terminals: Terminals) -> str:
    terminals.start("server")
    calls = [terminals.begin(name) for name in ("fib", "centre", "increase")]
    numbers = ["10\t55", "20\t6765", "30\t832040", "40\t102334155", "50\t12586269025"]
    for call, answers in zip(calls, [["832040"], numbers, ["42"]], strict=True):
        if call.end() != 0 or call.out != answers:
            raise Failed(f"`{call.line}` printed {call.out or call.err[-1:]} instead of {answers}")
    return "fib 30 is 832040, five calls at once on one reply queue got each its own answer, increase 41 is 42"


def confirms(terminals: Terminals) -> str:
    said = terminals.run("fits")
    if said != ["Sent 3: 3 confirmed, 0 returned."]:
        raise Failed(f"of 3 messages for a queue with room for 3 the command said {said}")
    full = _refused(terminals, "full", "not taken")
    returned = _refused(terminals, "nowhere", "returned")
    if (kept := terminals.waiting("confirms")) != 3:
        raise Failed(f"queue confirms has {kept} messages instead of the 3 that were confirmed")
    return f"3 confirmed and in the queue; a fourth: {full}; one to a queue that is not there: {returned}"


def dead_letters(terminals: Terminals) -> str:
    [undertaker] = terminals.start("undertaker")
    terminals.run("send")
    undertaker.wait_for_lines(1)
    undertaker.stop()
    deaths = [_death(line) for line in undertaker.out]
    if deaths != [("Today only!", "offers", "expired")]:
        raise Failed(f"the dead letters were {deaths} (body, queue, reason)")
    return "'Today only!' expired in queue offers after 1 s and came out of expired_offers with that reason"


CHECKS: dict[str, Callable[[Terminals], str]] = {
    each.__name__.replace("_", "-"): each
    for each in (hello, work_queue, fanout, direct, topic, headers, rpc, confirms, dead_letters)
}


def _is_free(connection: Connection, made: Made) -> bool:
    """Return whether nothing of that name exists yet. Raises Failed where it exists and differs, or is in use."""
    found = look(connection, made)
    if found is None:
        return True
    problem = ""
    if found.differs:
        problem = f"{found.differs}: it belongs to another client and was not touched; "
    elif found.consumers:
        problem = (
            f"has {counted(found.consumers, 'consumer')}: another client uses it, so it was not touched; stop it, or "
        )
    elif found.messages:
        problem = (
            f"holds {counted(found.messages, 'message')} from before, so it was not touched: `manage.py tutorial "
            "--cleanup` removes it, or "
        )
    if problem:
        raise Failed(f"{made} {problem}use another virtual host (AMQP_URL=amqp://…/tutorial)")
    return False


def _expect(listener: Terminal, *lines: str) -> None:
    """Wait for these lines, stop the listener, and see that there were no others. Raises Failed."""
    listener.wait_for_lines(len(lines))
    listener.stop()
    if listener.out != list(lines):
        raise Failed(f"`{listener.line}` printed {listener.out} instead of {list(lines)}: does another client send?")


def _refused(terminals: Terminals, name: str, how: str) -> str:
    """Run a line that must be refused; return how it was, in the command's own words. Raises Failed."""
    terminal = terminals.begin(name)
    code = terminal.end()
    told = terminal.last_words
    if code != 1 or not told.lower().startswith(how):
        raise Failed(f"`{terminal.line}` should have been {how}; it ended with {code}: {told}")
    return re.split("[.;]", told)[0]


def _death(line: str) -> tuple[Any, ...]:
    """Return body, queue and reason of a dead letter, or the line itself if it is none."""
    try:
        letter = json.loads(line)
        death = letter["headers"]["x-death"][0]
        return letter["body"], death["queue"], death["reason"]
    except (ValueError, LookupError, TypeError):
        return (line,)
