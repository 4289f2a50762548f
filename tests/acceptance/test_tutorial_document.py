"""docs/tutorial.md: its lines are those of `manage.py tutorial`, and its Django code runs as it stands."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from messaging import consumers, events, procedures
from messaging.models import InboxMessage
from messaging.rpc import client
from messaging.tutorial.lessons import LESSONS, Lesson
from tests.support.consuming import registered
from tests.support.rpc import RunningServer
from tests.support.running import IMPATIENT, running_relay, running_worker
from tests.support.waiting import eventually

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/tutorial.md"

_, *SECTIONS = re.split(r"^## (.+)\n", DOCUMENT.read_text(), flags=re.MULTILINE)
BY_TITLE = dict(zip(SECTIONS[::2], SECTIONS[1::2], strict=True))


def blocks(lesson: Lesson, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", BY_TITLE[lesson.title], re.MULTILINE | re.DOTALL)


def test_the_document_teaches_the_lessons_in_their_order() -> None:
    assert list(BY_TITLE) == [lesson.title for lesson in LESSONS]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_the_document_has_the_lines_of_the_lesson_each_for_its_terminal(lesson: Lesson) -> None:
    [typed] = blocks(lesson, "sh")
    terminal, found = 0, []
    for line in typed.splitlines():
        if line.startswith("# terminal "):
            terminal = int(line.removeprefix("# terminal "))
        else:
            found.append((terminal, line))

    assert found == [(line.terminal, str(line)) for line in lesson.lines.values()]
    assert BY_TITLE[lesson.title].strip().startswith(_marked_up(lesson.shows))


def _marked_up(text: str) -> str:
    return text.replace(" * ", " `*` ").replace(" # ", " `#` ")


class Snippet:
    """The Django code of a lesson, executed; what its handlers print is kept."""

    def __init__(self, lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
        [code] = blocks(lesson, "python")
        name = f"yourapp.{lesson.name.replace('-', '_')}"
        self.module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, self.module)
        self.printed: list[str] = []
        self.module.__dict__["print"] = self.printed.append
        exec(compile(code, f"{DOCUMENT.name}, {lesson.title}", "exec"), self.module.__dict__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def shows(self, *lines: str) -> None:
        eventually(lambda: sorted(self.printed) == sorted(lines), report=lambda: self.printed)


def hello(code: Snippet) -> None:
    code.greet("Hello World!")
    code.shows("Hello World!")


def work_queue(code: Snippet) -> None:
    code.upload("cat.png")
    code.upload("dog.png", priority=5)
    code.shows("a thumbnail of cat.png", "a thumbnail of dog.png")


def fanout(code: Snippet) -> None:
    code.change_price("tea")
    code.shows("indexed tea", "forgot tea")


def direct(code: Snippet) -> None:
    code.report("info", "dust")
    code.report("error", "smoke")
    code.shows("noted dust", "noted smoke", "woke somebody for smoke")


def topic(code: Snippet) -> None:
    code.measure("foundry", "noise", 80)
    code.measure("foundry", "heat", 61.5)
    code.shows("61.5 degrees in foundry")


def headers(code: Snippet) -> None:
    code.file("pdf", "drawing")
    code.file("pdf", "report")
    code.shows("archived a drawing", "archived a report", "printed a report")


def confirms(code: Snippet) -> None:
    heard, unheard = code.ask("en"), code.ask("tlh")
    eventually(lambda: code.what_became_of(heard) == "published")
    eventually(lambda: code.what_became_of(unheard) == "unroutable")
    code.shows("At your service.")


def dead_letters(code: Snippet) -> None:
    code.ask_refund(0)
    code.ask_refund(500)
    code.shows("refunded 500")
    dead = eventually(lambda: InboxMessage.objects.filter(state="dead").first())
    assert "There is nothing to refund." in dead.reason


TRIES: dict[str, Callable[[Snippet], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (hello, work_queue, fanout, direct, topic, headers, confirms, dead_letters)
}


@pytest.fixture
def _nothing_else_is_registered(isolated: Any, settings: Any, vhost: str) -> Iterator[None]:
    settings.MESSAGING = {**settings.MESSAGING, **IMPATIENT}
    isolated(events, procedures)
    with registered():
        yield


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("_nothing_else_is_registered")
@pytest.mark.parametrize("lesson", [each for each in LESSONS if each.name in TRIES], ids=lambda lesson: lesson.name)
def test_the_django_code_does_what_the_lesson_says(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Snippet(lesson, monkeypatch)
    everybody = [*consumers.registered(), *consumers.broadcasting()]
    with running_worker(*everybody) as worker, running_relay():
        eventually(lambda: len(worker.consumers) == len(everybody))
        eventually(lambda: all(each.subscription.consuming for each in worker.consumers))
        TRIES[lesson.name](code)


@pytest.mark.usefixtures("_nothing_else_is_registered")
def test_the_procedure_of_the_rpc_lesson_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    [lesson] = [each for each in LESSONS if each.name == "rpc"]
    code = Snippet(lesson, monkeypatch)
    server = RunningServer()
    try:
        assert code.ask(6, 7) == 42
        assert code.ask(-1, 7) == "A length is not negative."
    finally:
        server.stop()
        client.close()
