"""Fields of an event in JSON: how each is written, under which names it is read, and whether it returns unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import cache
from inspect import signature
from typing import Any, get_args, get_origin

from pydantic import AliasChoices, BaseModel, Secret, SecretBytes, SecretStr, SerializationInfo, ValidationError
from pydantic_core import from_json

from messaging.exceptions import Undecodable

#: Options for reading a model, and models in it, by aliases as well as by names. Before pydantic 2.11 the configuration
#: of each model decides.
BY_ALIAS_OR_NAME: dict[str, Any] = (
    {"by_alias": True, "by_name": True} if "by_name" in signature(BaseModel.model_validate_json).parameters else {}
)

_SECRETS = (Secret, SecretStr, SecretBytes)
#: A number that may be too large for a float.
_HUGE = re.compile(rb"\d(?:\d{299}|[eE]\+?\d{3})")


def let_travel(schema: Any) -> None:
    """Change the schema of a model so that all of its fields are written to JSON, also those with `exclude` and the
    values of `SecretStr`. Models in its fields stay unchanged."""
    match schema:
        case {"type": "model-fields", "fields": own}:
            for field in own.values():
                field.pop("serialization_exclude", None)
                _reveal(field["schema"])
        case {"schema": inner}:  # the model itself, and validators around it
            let_travel(inner)


def to_read(model: type[BaseModel], payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload so that a complete model can read it: fields under an alias that is only written get their own
    names, and computed fields are left out."""
    changes = _changes(model)
    if not changes:
        return payload
    return {changes.get(name) or name: value for name, value in payload.items() if changes.get(name, name) is not None}


def is_read_as_written(model: type[BaseModel]) -> bool:
    """Whether the model can read a payload that it wrote without a change. The model is complete."""
    return not _changes(model)


@cache
def _changes(model: type[BaseModel]) -> dict[str, str | None]:
    """Return the names that the model writes and does not read, each with the name that it reads, or None."""
    changes: dict[str, str | None] = {field.alias or name: None for name, field in model.model_computed_fields.items()}
    for name, field in model.model_fields.items():
        written, read = field.serialization_alias, field.validation_alias
        if written and written not in {name, *(read.choices if isinstance(read, AliasChoices) else [read])}:
            changes[written] = name
    return changes


def is_secret(annotation: Any) -> bool:
    """Whether a field of this type holds a secret."""
    is_one = isinstance(annotation, type) and issubclass(annotation, _SECRETS)
    return is_one or any(map(is_secret, get_args(annotation)))


def secrets(model: type[BaseModel]) -> frozenset[str]:
    """Return every name of the fields that hold secrets."""
    held = {name: field for name, field in model.model_fields.items() if is_secret(field.annotation)}
    return frozenset(held) | {field.serialization_alias or name for name, field in held.items()}


def without_json(model: BaseModel) -> str:
    """Return the name of the first field without a JSON form; empty if each has one."""
    for name in type(model).model_fields:
        try:
            model.model_dump_json(include={name}, warnings=False)
        except Exception:
            return name
    return ""


def is_finite(value: object) -> bool:
    """Whether each number in a value, a model for instance, has a JSON form: none is NaN or infinite."""
    return math.isfinite(value) if isinstance(value, float) else all(map(is_finite, _within(value)))


def is_too_large(body: bytes, read: object) -> bool:
    """Whether a number in this JSON is too large for a float, and so infinite in what was `read` from it."""
    return _HUGE.search(body) is not None and not is_finite(read)


def without_number(model: BaseModel) -> str | None:
    """Return the name of the first field with a number that has no JSON form; None if there is none."""
    return next((name for name in type(model).model_fields if not is_finite(vars(model).get(name))), None)


def holds_secret(value: object) -> bool:
    """Whether there is a secret in a value, a model for instance."""
    return isinstance(value, _SECRETS) or any(map(holds_secret, _within(value)))


def excluded(value: object) -> str | None:
    """Return the name of a field with `exclude` that a model in a value was given, and that JSON would not have; None
    if there is none."""
    if value is None or isinstance(value, str | int | float):  # most values
        return None
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            if field.exclude and name in value.model_fields_set:
                return name
    return next(filter(None, map(excluded, _within(value))), None)


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclass_fields(value)]
    return vars(value).values() if isinstance(value, BaseModel) else ()


def difference(here: BaseModel, there: BaseModel) -> str | None:
    """Return the name of the first field that differs between two models of one class; None if there is none.

    A default never differs: pydantic does not convert defaults to their type.
    """
    if _is_same(vars(here), vars(there)) and here.model_extra == there.model_extra:
        return None
    values, others = ({**vars(each), **(each.model_extra or {})} for each in (here, there))
    for name, value in values.items():
        field = type(here).model_fields.get(name)
        any_sequence = field is not None and _takes_any_sequence(field.annotation)
        if (field is None or value is not field.default) and not _is_same(
            value, others.get(name), any_sequence=any_sequence
        ):
            return name
    return None


def _reveal(schema: Any) -> None:
    """Change the schema of a field so that secrets are written in plain to JSON. In Python they stay hidden."""
    if isinstance(schema, list | tuple):
        for each in schema:
            _reveal(each)
    elif isinstance(schema, dict) and schema.get("type") != "model":
        written = schema.get("serialization", {})
        if getattr(written.get("function"), "__module__", "") == "pydantic.types" and written.get("info_arg"):
            written["function"] = _secret
        for name, inner in schema.items():
            if name not in {"serialization", "metadata", "default"}:
                _reveal(inner)


def _secret(value: Any, info: SerializationInfo) -> Any:
    return value.get_secret_value() if info.mode_is_json() else value


def _is_same(here: object, there: object, *, any_sequence: bool = False) -> bool:
    """Whether a value came back unchanged. With `any_sequence` a list equals a tuple."""
    try:
        # NaN does not equal itself.
        if here == there or (here != here and there != there):
            return True
    except Exception:
        return False
    is_one_type = type(here) is type(there)
    match here, there:
        case BaseModel(), BaseModel() if is_one_type:
            return difference(here, there) is None
        case ((list() | tuple()), (list() | tuple())) if any_sequence or is_one_type:
            pairs = zip(here, there, strict=False)
            return len(here) == len(there) and all(_is_same(*pair, any_sequence=any_sequence) for pair in pairs)
        case dict(), dict() if here.keys() == there.keys():
            return all(_is_same(value, there[name], any_sequence=any_sequence) for name, value in here.items())
    # Objects without an __eq__ of their own cannot be compared.
    return is_one_type and type(here).__eq__ is object.__eq__


def _takes_any_sequence(annotation: Any) -> bool:
    return get_origin(annotation) is Sequence or any(map(_takes_any_sequence, get_args(annotation)))


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body` (UTF-8). Raises Undecodable for anything else."""
    try:
        payload = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Undecodable(f"the body is not JSON: {error}") from None
    if not isinstance(payload, dict):
        raise Undecodable(f"the body is JSON, but of type {type(payload).__name__}, not an object")
    return payload


def first_problems(error: ValidationError) -> str:
    """Return which fields are wrong and why, never their values: a value may be a person's phone number."""
    problems = [f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in error.errors(include_input=False)]
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")
