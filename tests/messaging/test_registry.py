"""A declared name belongs to one function or class: of events, effects, consumers and procedures alike."""

from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from messaging import consumers, effects, events, procedures
from messaging.registry import Registry


def thing(name: str = "notes", module: str = "orders.things") -> Any:
    return SimpleNamespace(name=name, made_by=SimpleNamespace(__module__=module, __qualname__="notes"))


@pytest.fixture
def things() -> Registry[Any]:
    return Registry("thing", name_of=lambda each: each.name, defined_by=lambda each: each.made_by, unknown=KeyError)


def test_a_name_belongs_to_one_function_whose_module_may_be_imported_twice(things: Registry[Any]) -> None:
    first, again = thing(), thing()
    things.add(first)
    things.add(again)
    assert things.all() == [again]
    with pytest.raises(ImproperlyConfigured, match=r"two things are named 'notes': orders\.things\.notes, stock\."):
        things.add(thing(module="stock.things"))


def test_the_error_for_an_unknown_name_lists_the_registered_names(things: Registry[Any]) -> None:
    things.add(thing("b"))
    things.add(thing("a"))
    assert [each.name for each in things.named(["b", "a", "b"])] == ["b", "a"]
    with pytest.raises(KeyError, match=r"There is no thing 'c'\. Registered: a, b"):
        things.named(["a", "c"])


def test_a_temporary_registry_forgets_what_was_declared_in_it(things: Registry[Any]) -> None:
    things.add(thing("a"))
    with things.temporary(thing("b")):
        assert [each.name for each in things.all()] == ["b"]
    with things.temporary(keep=True):
        things.put(thing("a", "stock.things"))
        things.add(thing("c"))
        assert [each.name for each in things.all()] == ["a", "c"]
    assert [each.made_by.__module__ for each in things.all()] == ["orders.things"]


@pytest.mark.parametrize("module", [consumers, effects, events, procedures])
def test_every_declared_thing_is_found_under_its_name(module: Any) -> None:
    for each in module.registered():
        assert module.registry.get(getattr(each, "event_type", None) or each.name) is each
        module.registry.add(each)
