"""An AsyncAPI 3 document of what this project sends and receives over the broker, from what is registered.

It has three kinds of operations: the project sends events, receives them as consumers, and answers requests as
procedures. The same code always gives the same document, on every machine
(https://www.asyncapi.com/docs/reference/specification/v3.0.0).
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from string import Formatter
from typing import Any

from pydantic import PydanticUserError, TypeAdapter

from messaging import consumers, events, procedures
from messaging.consumers import Consumer, exchange_of
from messaging.events import Event
from messaging.message import ATTEMPT_HEADER, SUBJECT_HEADER, VERSION_HEADER
from messaging.procedures import Procedure
from messaging.routing import Exchange
from messaging.topology import desired
from messaging.validation import functions

SPECIFICATION = "3.0.0"
AMQP_BINDING = "0.3.0"
#: Characters that the name of a channel, a message or an operation must not have.
_ODD = re.compile(r"[^A-Za-z0-9._-]")

Document = dict[str, Any]


def document(*, title: str, version: str) -> Document:
    """Return the document. `version` is that of the application's interface, which the code does not say."""
    all_consumers = sorted([*consumers.registered(), *consumers.broadcasting()], key=lambda each: each.name)
    all_events, all_procedures = events.registered(), procedures.registered()
    schemas = _Schemas(all_events, all_procedures)
    channels: Document = {}
    operations: Document = {}
    messages = {_message(event): _event_message(event, schemas) for event in all_events}
    for event in all_events:
        _add_event(event, channels, operations)
    for consumer in all_consumers:
        _add_consumer(consumer, channels, operations)
    for procedure in all_procedures:
        _add_procedure(procedure, channels, operations, messages, schemas)
    return {
        "asyncapi": SPECIFICATION,
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas.components},
    }


class _Schemas:
    """The JSON schemas of everything that travels, by kind and name; `components` has the types that several share."""

    def __init__(self, all_events: Sequence[type[Event]], all_procedures: Sequence[Procedure]) -> None:
        types: list[tuple[tuple[str, str], Any, Any]] = [
            *((("event", each.event_type), "serialization", each) for each in all_events),
            *((("arguments", each.name), "validation", each.function) for each in all_procedures),
            *((("result", each.name), "serialization", _result_of(each.function)) for each in all_procedures),
        ]
        inputs: Any = [(key, mode, TypeAdapter(each)) for key, mode, each in types if _has_schema(each, mode)]
        found, rest = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
        self._found: dict[Any, Document] = {key: _as_asyncapi(schema) for (key, _), schema in found.items()}
        self.components: Document = _as_asyncapi(dict(sorted(rest.get("$defs", {}).items())))

    def __getitem__(self, key: tuple[str, str]) -> Document:
        return self._found.get(key, {})


def _as_asyncapi(schema: Any) -> Any:
    """Return pydantic's JSON schema with AsyncAPI's discriminators: the name of the property, not OpenAPI's object
    (https://www.asyncapi.com/docs/reference/specification/v3.0.0#schemaObject)."""
    if isinstance(schema, list):
        return [_as_asyncapi(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _as_asyncapi(each) for name, each in schema.items()}
    if "oneOf" in schema and "discriminator" in schema:
        plain["discriminator"] = schema["discriminator"]["propertyName"]
    return plain


def _result_of(function: Callable[..., Any]) -> Any:
    try:
        return functions.type_hints(function).get("return", Any)
    except NameError:  # the type is imported for type checkers alone
        return Any


def _has_schema(type_: Any, mode: Any) -> bool:
    # A result may be anything that can be turned into JSON, such as a query set.
    try:
        TypeAdapter(type_).json_schema(mode=mode)
    except (PydanticUserError, NameError, KeyError, TypeError):  # the last two for a partial of an object
        return False
    return True


# --- Events --------------------------------------------------------------------------------------------------


def _event_message(event: type[Event], schemas: _Schemas) -> Document:
    # AsyncAPI has no other place for AMQP's properties than among the headers.
    header: Document = {
        "messageId": _TEXT | _described("the AMQP property message_id: it is unique together with app_id"),
        "appId": _TEXT | _described("the AMQP property app_id: the application that published it"),
        VERSION_HEADER: {"type": "integer", "enum": event.versions(), "description": "of the schema; absent: 1"},
        ATTEMPT_HEADER: {"type": "integer", "minimum": 1, "description": "of one consumer; absent: 1"},
        SUBJECT_HEADER: _TEXT | _described("what it is about: a business key"),
    }
    header |= {name: {"description": f"the body's {_written(event, name)}"} for name in event.event_headers}
    return {
        "name": event.event_type,
        "title": event.__name__,
        **_described(inspect.getdoc(event)),
        "contentType": "application/json",
        "headers": {"type": "object", "properties": header},
        "payload": schemas["event", event.event_type],
        "bindings": {"amqp": {"messageType": event.event_type, "bindingVersion": AMQP_BINDING}},
        "x-event-version": event.event_version,
    }


def _message(event: type[Event]) -> str:
    return _id(f"event.{event.event_type}")


def _add_event(event: type[Event], channels: Document, operations: Document) -> None:
    name = _message(event)
    address, fields = _address(event)
    parameters = {each: {"location": f"$message.payload#/{_written(event, each)}"} for each in fields}
    channels[name] = _channel(
        address,
        [name],
        _by_routing_key(exchange_of(event)),
        **({"parameters": parameters} if parameters else {}),
    )
    how = {"deliveryMode": 2, "mandatory": True, "timestamp": True}
    operations[_id(f"send.{event.event_type}")] = _operation("send", name, [name], how)


def _address(event: type[Event]) -> tuple[str, list[str]]:
    """Return the routing key of an event, with fields in braces, and their names, each once."""
    if not event.event_key:
        return event.event_type, []
    parts = [(text, name) for text, name, _, _ in Formatter().parse(event.event_key)]
    address = "".join(text + (f"{{{name}}}" if name is not None else "") for text, name in parts)
    return address, list(dict.fromkeys(name for _, name in parts if name is not None))


def _written(event: type[Event], field: str) -> str:
    """Return the name of a field in the body."""
    return event.model_fields[field].serialization_alias or field


# --- Consumers -----------------------------------------------------------------------------------------------


def _add_consumer(consumer: Consumer, channels: Document, operations: Document) -> None:
    name = _id(f"queue.{consumer.queue or consumer.name}")
    ids = [_message(event) for event in consumer.events]
    bindings = [
        {"exchange": each.exchange, "key": each.key, **({"arguments": dict(each.arguments)} if each.arguments else {})}
        for each in consumer.bindings
    ]
    channels[name] = _channel(
        consumer.queue or None,  # the broker names the queue of each process of a broadcast
        ids,
        _queue(consumer.queue, exclusive=consumer.broadcast),
        **{"x-bindings": bindings},
        **({} if consumer.broadcast else {"x-arguments": desired.queue_arguments(consumer)}),
    )
    operations[_id(f"receive.{consumer.name}")] = _operation(
        "receive", name, ids, {"ack": True}, **_described(inspect.getdoc(consumer.handler))
    )


# --- Procedures ----------------------------------------------------------------------------------------------


def _add_procedure(
    procedure: Procedure, channels: Document, operations: Document, messages: Document, schemas: _Schemas
) -> None:
    request, reply, error = (_id(f"{what}.{procedure.name}") for what in ("request", "reply", "error"))
    ok, failed = ({procedures.STATUS_HEADER: {"const": each}} for each in (procedures.OK, procedures.ERROR))
    for name, headers, payload in (
        (request, _properties("replyTo", "correlationId"), _request(procedure, schemas)),
        (reply, _properties("correlationId", **ok), schemas["result", procedure.name]),
        (error, _properties("correlationId", **failed), _ERROR),
    ):
        correlated = {"location": "$message.header#/correlationId"}
        messages[name] = {"name": name, "headers": headers, "payload": payload, "correlationId": correlated}
    asked, answered = _id(f"queue.{procedure.queue}"), _id(f"replies.{procedure.name}")
    channels[asked] = _channel(
        procedure.queue, [request], _queue(procedure.queue, durable=True, auto_delete=not procedure.plain_queue)
    )
    channels[answered] = _channel(None, [reply, error], _queue("", exclusive=True))
    address = {"location": "$message.header#/replyTo"}
    address |= _described("The AMQP properties reply_to and correlation_id of the request.")
    operations[_id(f"answer.{procedure.name}")] = _operation(
        "receive",
        asked,
        [request],
        {"ack": True},
        **_described(inspect.getdoc(procedure.function)),
        reply={"address": address, **_at(answered, [reply, error])},
    )


def _request(procedure: Procedure, schemas: _Schemas) -> Document:
    """Return the schema of a request's body: an object of named arguments, or any other value as the only one."""
    named = schemas["arguments", procedure.name]
    parameters = list(inspect.signature(procedure.function).parameters.values())
    required = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_POSITIONAL]
    first = parameters[0] if parameters else None
    if first is None or len(required) > 1 or first.name not in named.get("properties", {}):
        return named
    return {"anyOf": [named, named["properties"][first.name]]}


_TEXT: Document = {"type": "string"}
_ERROR_FACTS: Document = {
    "type": "object",
    "required": ["type", "message"],
    "properties": {"type": _TEXT, "message": _TEXT},
}
_ERROR: Document = {"type": "object", "required": ["error"], "properties": {"error": _ERROR_FACTS}}


def _properties(*texts: str, **headers: Document) -> Document:
    return {"type": "object", "properties": {**dict.fromkeys(texts, _TEXT), **headers}}


# --- Channels, operations and their bindings -----------------------------------------------------------------


def _channel(address: str | None, messages: Sequence[str], binding: Document, **more: Any) -> Document:
    carried = {each: _ref("components", "messages", each) for each in messages}
    return {"address": address, "messages": carried, **more, "bindings": {"amqp": binding}}


def _operation(action: str, channel: str, messages: Sequence[str], how: Document, **more: Any) -> Document:
    bindings = {"amqp": {**how, "bindingVersion": AMQP_BINDING}}
    return {"action": action, **_at(channel, messages), **more, "bindings": bindings}


def _at(channel: str, messages: Sequence[str]) -> Document:
    named = [_ref("channels", channel, "messages", each) for each in messages]
    return {"channel": _ref("channels", channel), "messages": named}


def _by_routing_key(exchange: Exchange) -> Document:
    facts = {"name": exchange.name, "type": exchange.type, "durable": True, "autoDelete": False}
    return {"is": "routingKey", "exchange": facts, "bindingVersion": AMQP_BINDING}


def _queue(name: str, *, exclusive: bool = False, durable: bool = True, auto_delete: bool = False) -> Document:
    facts: Document = {"name": name} if name else {}
    facts |= {"durable": durable and not exclusive, "exclusive": exclusive, "autoDelete": auto_delete}
    return {"is": "queue", "queue": facts, "bindingVersion": AMQP_BINDING}


def _described(text: str | None) -> Document:
    return {"description": text} if text else {}


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "/".join(["#", *(each.replace("~", "~0").replace("/", "~1") for each in path)])}


def _id(name: str) -> str:
    """Return `name` without odd characters; different names stay different."""
    plain = _ODD.sub("_", name)
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
