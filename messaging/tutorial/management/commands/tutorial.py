"""`manage.py tutorial`: the classic lessons, printed, checked against the broker, and cleaned up after."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from django.core.management.base import CommandError, CommandParser

from messaging.broker.connection import opened
from messaging.exceptions import OperationRefused
from messaging.management.arguments import CommandWithExamples
from messaging.management.errors import EXIT_USAGE, broker_told_in_one_line, told_when_interrupted
from messaging.management.tables import quiet_when_the_reader_leaves
from messaging.management.terminal_log import quiet_log
from messaging.processes import StopSignals
from messaging.tutorial.check import check
from messaging.tutorial.cleanup import Found, counted, look, remove
from messaging.tutorial.lessons import LESSONS, Lesson, find
from messaging.tutorial.terminals import Failed, Interrupted

EXAMPLES = """
examples:
  manage.py tutorial                               every lesson: what it shows, and the line for each terminal
  manage.py tutorial topic                         one lesson
  manage.py tutorial --check                       run every line of every lesson, and say what came of it
  manage.py tutorial rpc --check                   the same for one lesson
  manage.py tutorial --cleanup                     remove the queues and exchanges that the lines made

exit codes: 0 done, 1 a lesson showed something else, or something could not be removed, 2 wrong arguments,
3 broker unreachable, 7 it did not answer in time, 130 interrupted
"""

#: Lessons that are run at the same time: most of a lesson's time its processes are starting.
AT_A_TIME = 2


class Command(CommandWithExamples):
    help = "The classic RabbitMQ lessons, as one line for each terminal."
    examples = EXAMPLES

    def add_arguments(self, parser: CommandParser) -> None:
        names = ", ".join(each.name for each in LESSONS)
        parser.add_argument("lesson", nargs="?", metavar="LESSON", help=f"one of: {names} (default: all)")
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--check", action="store_true", help="run the lines against the broker and say what was seen")
        how.add_argument("--cleanup", action="store_true", help="remove what the lines made, and nothing else")

    def handle(self, *args: Any, **options: Any) -> None:
        lessons = _chosen(options["lesson"])
        with quiet_when_the_reader_leaves(), told_when_interrupted(), quiet_log(unless=options["verbosity"] > 1):
            if options["check"]:
                self._check(lessons)
            elif options["cleanup"]:
                self._clean_up(lessons)
            else:
                self._print(lessons)

    def _print(self, lessons: Sequence[Lesson]) -> None:
        for lesson in lessons:
            self._say(self.style.MIGRATE_HEADING(f"{lesson.title} ({lesson.name})"))
            self._say(f"  {lesson.shows}")
            for line in lesson.lines.values():
                self._say(f"  terminal {line.terminal}   {line}")
            self._say("")
        self._say("What a line waits for goes on until Ctrl-C. More about each: docs/tutorial.md.")
        self._say("`manage.py tutorial --check` runs them all, `--cleanup` removes what they made.")

    def _check(self, lessons: Sequence[Lesson]) -> None:
        failed = []
        with (
            broker_told_in_one_line(),
            opened("tutorial") as connection,
            _PatientSignals() as signals,
            ThreadPoolExecutor(AT_A_TIME) as threads,
        ):
            seen = [threads.submit(check, connection, lesson, lambda: signals.received) for lesson in lessons]
            try:
                for lesson, future in zip(lessons, seen, strict=True):
                    try:
                        self._say(f"{lesson.name}: {future.result()}")
                    except Failed as failure:
                        failed.append(lesson.name)
                        self._say(f"{lesson.name}: {self.style.ERROR('FAILED')}: {failure}")
            except Interrupted:
                raise CommandError("Interrupted. What had been started was stopped and removed.") from None
            finally:
                threads.shutdown(cancel_futures=True)
        if failed:
            raise CommandError(f"{len(failed)} of {len(lessons)} lessons did not work: {', '.join(failed)}.")
        self._say(f"All {len(lessons)} lessons work." if len(lessons) > 1 else "The lesson works.")

    def _clean_up(self, lessons: Sequence[Lesson]) -> None:
        removed = kept = 0
        with broker_told_in_one_line(), opened("tutorial") as connection:
            for made in [made for lesson in lessons for made in lesson.made]:
                try:
                    found = look(connection, made)
                    why_not = remove(connection, made) if found and not found.differs else ""
                except OperationRefused as error:
                    found, why_not = Found(), str(error)
                if found is None:
                    continue
                if found.differs:
                    self._say(f"{made} {found.differs}: it belongs to another client, and is left alone.")
                elif why_not:
                    kept += 1
                    self._say(f"{made} was not removed: {why_not}.")
                else:
                    removed += 1
                    messages = f" with {counted(found.messages, 'message')}" if found.messages else ""
                    self._say(f"Removed {made}{messages}.")
        if kept:
            raise CommandError("Not all could be removed. Stop what uses it, or use an account that may, and repeat.")
        if not removed:
            self._say("Nothing to remove: no queue or exchange of the lessons exists.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


class _PatientSignals(StopSignals):
    """Does not end this process at the second signal: the processes of the lessons would be left running."""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def _chosen(name: str | None) -> Sequence[Lesson]:
    if name is None:
        return LESSONS
    if (lesson := find(name)) is None:
        names = ", ".join(each.name for each in LESSONS)
        raise CommandError(f"There is no lesson {name!r}. Lessons: {names}.", returncode=EXIT_USAGE)
    return [lesson]
