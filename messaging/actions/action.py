"""An action: something that an operator can do. What all actions share is done here: pages of rows, locks, the audit
log, and saying what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from django.db.models import QuerySet

from messaging import database
from messaging.actions import audit
from messaging.actions.selection import Box, Selection, counted
from messaging.logs import get_logger
from messaging.models import Effect, InboxMessage, OperatorAction, OutboxMessage
from messaging.validation.texts import storable_text

log = get_logger(__name__)

#: Rows that an action changes in one transaction.
SIZE = 100
EVERYTHING = Selection()
TOLD_TO_STOP = "Stopped: told to stop."
_LARGE = {OutboxMessage: ("body", "headers"), InboxMessage: ("body", "headers"), Effect: ("payload",)}

Each = TypeVar("Each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What an action is told besides which rows: arguments of its command, keywords of its task, fields of its form.

    With `choices` (each with what it means) one of them must be given: the command has a flag for each. A number is at
    least `low` and at most `high`. Only texts and choices are in a form.
    """

    name: str
    help: str
    type: type[str | int | float] = str
    metavar: str = ""
    default: Any = None
    low: float = 1
    high: float = 65_535
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Request:
    """What an operator asks for: which rows, who, why, until when, and each of the action's options.

    `progress` is told in words how far the action has come, often.
    """

    selection: Selection
    by: str
    note: str
    should_stop: Callable[[], bool]
    options: Mapping[str, Any]
    progress: Callable[[str], None]
    #: Its entry in the audit log, once something was done.
    entry: OperatorAction | None = None


@dataclass(slots=True, kw_only=True)
class Result:
    """What an action did, or would do."""

    #: Rows that it changed.
    changed: int = 0
    #: The same in sentences.
    text: str = ""
    #: How many of the rows it changed, or left alone, in words: for a list.
    lines: Sequence[tuple[int, str]] = ()
    #: Rows of a plan by (what becomes of them, number, consumer, type), where that was asked for.
    table: Sequence[tuple[str, int, str, str]] = ()
    #: For programs.
    facts: dict[str, Any] = field(default_factory=dict)
    #: Some of what was asked for was not done.
    is_partial: bool = False
    #: Why it ended early, or is no success although it is complete; empty where all is well.
    stopped: str = ""
    timed_out: bool = False


class Action(ABC):
    """Something that an operator can do."""

    #: As its command, task, address and entries of the audit log have it.
    name: ClassVar[str]
    help: ClassVar[str]
    #: The end of its command's help.
    examples: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()

    @abstractmethod
    def plan(self, selection: Selection = EVERYTHING, **options: Any) -> Result:
        """Say what it would do. Changes nothing."""

    @abstractmethod
    def do(self, request: Request) -> Result:
        """Do it. It may be stopped and repeated at any time."""

    def run(
        self,
        selection: Selection = EVERYTHING,
        *,
        by: str = "",
        note: str = "",
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> Result:
        """Do it, for the person `by`, who says why in `note`. Raises as `check` does."""
        self.check(selection, **options)
        usual = {option.name: option.default for option in self.options}
        request = Request(selection, by, note, should_stop, {**usual, **options}, progress)
        result = self.do(request)
        if request.entry is not None and result.stopped:
            audit.end_early(request.entry, result.stopped)
        return result

    def check(self, selection: Selection, **options: Any) -> None:
        """Raise TypeError for options that it does not have, and ValueError for those that make no sense."""
        if unknown := options.keys() - {option.name for option in self.options}:
            # With a misspelt one ignored, it would do more than was meant.
            raise TypeError(f"{self.name} has no option {', '.join(sorted(unknown))}")
        for option in self.options:
            value = options.get(option.name, option.default)
            if option.choices and value not in option.choices:
                raise ValueError(f"say which: {', '.join(option.choices)}")
            if option.type is not str and value != option.default and not option.low <= value <= option.high:
                raise ValueError(f"{option.name} is from {option.low:g} to {option.high:g}")

    def why_nothing(self, selection: Selection, **options: Any) -> str:
        """Return why nothing was changed; empty where that is no failure."""
        return ""


class MessageAction(Action):
    """Something that an operator can do to chosen rows: page by page, each page locked, changed and audited in a
    transaction of its own."""

    label: ClassVar[str]
    #: What it makes of a row, as in "3 messages discarded".
    past: ClassVar[str]
    permission: ClassVar[str]
    #: What it does, in a sentence or two: for its page in the admin and its command's help.
    meaning: ClassVar[str]
    #: Which rows it is for, by box: only these are changed, and their pages in the admin offer it.
    states: ClassVar[Mapping[Box, Sequence[str]]]
    #: Why other rows are left alone, and what to say where there was no row at all.
    not_so: ClassVar[str]
    nothing: ClassVar[str]
    #: What follows, as a sentence.
    afterwards: ClassVar[str] = ""
    #: Its change needs the bodies of messages.
    needs_bodies: ClassVar[bool] = False
    #: A story names it; not where the row itself says who did it.
    in_stories: ClassVar[bool] = True

    def rows(self, box: Box, selection: Selection, **options: Any) -> QuerySet[Any]:
        """Return those of the selected rows that it changes."""
        return box._default_manager.filter(selection.of(box), state__in=self.states[box])

    @abstractmethod
    def change(self, rows: Sequence[Any], words: str, **options: Any) -> None:
        """Change these rows of one box, which are locked, in the caller's transaction. `words` say who did it and why,
        for the rows to keep."""

    def after_commit(self, rows: Sequence[Any]) -> None:
        """Do what follows once these rows are changed, in transactions of its own."""

    def busy(self, selection: Selection) -> tuple[int, str]:
        """Return how many of the selected rows are left alone because a process works on them, and what it does."""
        return 0, ""

    def facts(self, counts: Mapping[Box, int], busy: int) -> dict[str, Any]:
        """Return what was done, for programs."""
        return {self.past.replace(" ", "_"): sum(counts.values())}

    def options_for(self, row: Any) -> Sequence[Option]:
        """Return the options that make sense for a row."""
        return self.options

    def plan(self, selection: Selection = EVERYTHING, **options: Any) -> Result:
        counts = {box: self.rows(box, selection, **options).count() for box in self._boxes(selection)}
        return self._result(selection, counts, f"would be {self.past}")

    def do(self, request: Request) -> Result:
        counts: dict[Box, int] = dict.fromkeys(self._boxes(request.selection), 0)
        stopped = False
        for box in counts:
            ids = self.rows(box, request.selection, **request.options).order_by("pk").values_list("pk", flat=True)
            found = list(ids)
            for page in pages(found):
                if stopped := stopped or request.should_stop():
                    break
                counts[box] += len(self.change_page(box, page, request))
                request.progress(f"{counts[box]} of {counted(len(found), box._meta.verbose_name)} {self.past}")
        if not any(counts.values()):
            self.record_nothing(request)
        result = self._result(request.selection, counts, self.past)
        result.stopped = TOLD_TO_STOP if stopped else ""
        log.info("operator.done", action=self.name, changed=result.changed)
        return result

    def why_nothing(self, selection: Selection, **options: Any) -> str:
        number, doing = self.busy(selection)
        return f"{number} {doing}" if number else self.nothing

    def change_page(self, box: Box, ids: Sequence[int], request: Request) -> list[Any]:
        """Change those of these rows that are still selected, and that it is still for, in one transaction; return
        them."""
        # What was recent enough when it was listed stays so, however slowly the pages go.
        selection = replace(request.selection, since=None)
        words = storable_text(f"{self.past} by {request.by}{f': {request.note}' if request.note else ''}")
        with database.one_of_many():
            rows = self.lock(self.rows(box, selection, **request.options).filter(pk__in=ids))
            if rows:
                # Before what follows from it: a story has it in this order.
                entry = self._record(request, rows)
                self.change(rows, words, **request.options)
        if rows:
            request.entry = entry
            self.after_commit(rows)
        return rows

    def lock(self, rows: QuerySet[Any]) -> list[Any]:
        """Lock these rows, in the caller's transaction, and return them."""
        rows = rows if self.needs_bodies else rows.defer(*_LARGE[rows.model])
        return list(rows.order_by("pk").select_for_update(of=("self",)))

    def about(self, selection: Selection) -> str:
        """Return what it was done to, as the audit log says it."""
        return str(selection)

    def record_nothing(self, request: Request) -> None:
        """Audit that it was asked for, and nothing was changed."""
        with database.atomic():
            entry = self._record(request, [])
        request.entry = entry

    def _record(self, request: Request, rows: Sequence[Any]) -> OperatorAction:
        message_ids = [row.message_id for row in rows]
        if request.entry is not None:
            audit.extend(request.entry, message_ids)
            return request.entry
        usual = {option.name: option.default for option in self.options}
        return audit.record(
            self.name,
            actor=request.by,
            about=self.about(request.selection),
            message_ids=message_ids,
            changed=len(rows),
            note=request.note,
            **{name: value for name, value in request.options.items() if value != usual[name]},
        )

    def _boxes(self, selection: Selection) -> list[Box]:
        return [box for box in self.states if selection.may_be_in(box)]

    def _result(self, selection: Selection, counts: Mapping[Box, int], past: str) -> Result:
        changed = sum(counts.values())
        busy, doing = self.busy(selection)
        rest = sum(len(selection.rows_of(box)) for box in counts) - changed - busy
        left = [(number, why) for number, why in ((busy, doing), (rest, self.not_so)) if number > 0]
        told = " and ".join(counted(number, box._meta.verbose_name) for box, number in counts.items())
        sentences = [f"{told} {past}.", *(f"{number} left alone: {why}." for number, why in left)]
        return Result(
            changed=changed,
            text=" ".join([*sentences, self.afterwards] if changed and self.afterwards else sentences),
            lines=[(changed, f"to be {self.past}"), *left] if changed else left,
            facts=self.facts(counts, busy),
            is_partial=bool(left) or not changed,
        )


def pages(rows: Sequence[Each], size: int | None = None) -> Iterator[Sequence[Each]]:
    """Yield `rows`, `size` (SIZE) at a time."""
    size = size or SIZE
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
