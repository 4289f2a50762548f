"""The lines that logs over the broker consist of: a routing key, and a JSON document of a bounded size."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from messaging.masking import mask_event, masked_text
from messaging.processes import process_name
from messaging.routing import MAX_SHORT_STRING

#: Bytes of one line; of a longer one its text and its traceback are cut short.
MAX_LINE = 16 << 10
#: Characters that are left of each text then.
SHORTENED = 4000
#: What is kept of a line that is too long.
_KEPT = (
    "time", "level", "logger", "text", "process",
    "message_id", "type", "consumer", "attempt", "request_id", "correlation_id", "procedure",
)  # fmt: skip
#: Characters that a word of a key cannot hold.
_ODD = re.compile(r"[^\w-]+")
#: Bytes of a key that the level may take.
_LEVEL = 64


@dataclass(frozen=True, slots=True)
class Line:
    """What is published of a record."""

    key: str
    body: bytes


def line(logger: str, level: str, text: str, **more: Any) -> Line:
    """Return a line of our own."""
    now = datetime.now(UTC).isoformat()
    event = {"timestamp": now, "level": level.lower(), "logger": logger, "event": text, **more}
    return Line(key_of(logger, level), _document(None, "", event).encode(errors="replace"))


def broken(record: logging.LogRecord) -> Line:
    """Return a line for a record that cannot be formatted."""
    text = "a log record cannot be formatted"
    with suppress(Exception):
        text = f"{text}: {masked_text(repr(record.msg))[:SHORTENED]}"
    return line(str(record.name), str(record.levelname), text)


def key_of(logger: str, level: str) -> str:
    """Return `<logger>.<level>` as a routing key of 255 bytes at most."""
    ending = f".{_word(level.lower())}".encode()[:_LEVEL]
    words = ".".join(map(_word, logger.split("."))).encode()
    return (words[: MAX_SHORT_STRING - len(ending)]).decode(errors="ignore") + ending.decode(errors="ignore")


def _word(text: str) -> str:
    return _ODD.sub("_", text.encode(errors="replace").decode()) or "_"


def formatter() -> logging.Formatter:
    """Return what makes the body of a line of a record, be it structlog's or of any other library."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder()],
        processors=[
            _add_origin,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Tracebacks become text before secrets are masked.
            structlog.processors.format_exc_info,
            mask_event,
            _document,
        ],
    )


def _add_origin(_: Any, __: str, event: Any) -> Any:
    record: logging.LogRecord = event["_record"]
    event["timestamp"] = datetime.fromtimestamp(record.created, UTC).isoformat()
    event["level"] = record.levelname.lower()
    event["logger"] = record.name
    return event


def _document(_: Any, __: str, event: Any) -> str:
    event = dict(event)
    document = {
        "time": event.pop("timestamp"),
        "level": event.pop("level"),
        "logger": event.pop("logger"),
        "text": str(event.pop("event", "")),
        "process": process_name(),
    }
    document |= {f"{name}_" if name in document else name: value for name, value in event.items()}
    text = _json(document)
    if len(text.encode(errors="replace")) <= MAX_LINE:
        return text
    kept = {name: str(document[name])[:SHORTENED] for name in _KEPT if name in document}
    if "exception" in document:  # its end says most
        kept["exception"] = str(document["exception"])[-SHORTENED:]
    return _json({**kept, "shortened": True})


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, default=str)
