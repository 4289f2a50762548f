"""The registry: what an application has declared, by name. One each for events, effects, consumers and procedures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from django.core.exceptions import ImproperlyConfigured

from messaging.validation import functions

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """What was declared of one `kind`. `name_of` and `defined_by` return an item's name, and the function or class that
    it was declared with; `unknown` is what `get` raises."""

    def __init__(
        self, kind: str, *, name_of: Callable[[Item], str], defined_by: Callable[[Item], Any], unknown: type[Exception]
    ) -> None:
        self._kind = kind
        self._name_of = name_of
        self._defined_by = defined_by
        self._unknown = unknown
        self._items: dict[str, Item] = {}
        #: Counts the changes, for those who remember what they computed of all items.
        self.changes = 0

    def add(self, item: Item) -> None:
        """Register `item`. The same function or class replaces what it declared before, as when a module is loaded
        twice.

        Raises ImproperlyConfigured if another one has its name.
        """
        name = self._name_of(item)
        if (other := self.find(name)) is not None and self._path(other) != self._path(item):
            raise ImproperlyConfigured(f"two {self._kind}s are named {name!r}: {self._path(other)}, {self._path(item)}")
        self.put(item)

    def put(self, item: Item) -> None:
        """Register `item` in place of any other of its name. For tests, in a `temporary` registry."""
        self._items[self._name_of(item)] = item
        self.changes += 1

    def clear(self) -> None:
        """Forget all items. For tests, in a `temporary` registry."""
        self._items.clear()
        self.changes += 1

    def find(self, name: str) -> Item | None:
        """Return the item of that name, or None."""
        return self._items.get(name)

    def get(self, name: str) -> Item:
        """Return the item of that name. Raises the `unknown` error, listing the names that exist."""
        if (item := self.find(name)) is not None:
            return item
        known = ", ".join(sorted(self._items)) or "none"
        raise self._unknown(f"There is no {self._kind} {name!r}. Registered: {known}.")

    def named(self, names: Iterable[str]) -> list[Item]:
        """Return the items of those names, each once. Raises the `unknown` error."""
        return [self.get(name) for name in dict.fromkeys(names)]

    def all(self) -> list[Item]:
        """Return every item, by name."""
        return [self._items[name] for name in sorted(self._items)]

    @contextmanager
    def temporary(self, *items: Item, keep: bool = False) -> Iterator[None]:
        """Within the block hold only `items`, and with `keep` also what was registered before, unless it has the name
        of one of them. For tests: what is declared in the block is forgotten after it."""
        before = self._items
        self._items = {**(before if keep else {}), **{self._name_of(item): item for item in items}}
        self.changes += 1
        try:
            yield
        finally:
            self._items = before
            self.changes += 1

    def _path(self, item: Item) -> str:
        return functions.path(self._defined_by(item))
