"""Logging: one event a line, as key=value or JSON, with secrets masked."""

import sys
from typing import Any

# If structlog finds rich, it imports it for tracebacks that are not used here. That takes longer than to import pika. A
# module that is None in `sys.modules` is not found; afterwards rich can be imported as ever.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

if sys.modules["rich"] is None:
    del sys.modules["rich"]

from messaging.masking import mask_event  # noqa: E402

_BEFORE_RENDERING: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ExtraAdder(),
]
_RENDERERS: dict[str, Any] = {
    # Plain tracebacks: the rich form prints the variables of each frame, and with them names and phone numbers.
    "console": structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    ),
    "json": structlog.processors.JSONRenderer(),
}


def configure(level: str, style: str, *, to_broker: bool) -> dict[str, Any]:
    """Configure structlog, and return the value of LOGGING. `style` is console or json."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_BEFORE_RENDERING,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": _BEFORE_RENDERING,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Tracebacks become text before secrets are masked. The lines of libraries pass here, too.
            structlog.processors.format_exc_info,
            mask_event,
            _RENDERERS[style],
        ],
    }
    handlers: dict[str, Any] = {"stderr": {"class": "messaging.masking.MaskedHandler", "formatter": "structured"}}
    if to_broker:
        handlers["broker"] = {"class": "messaging.monitoring.log_handler.BrokerHandler"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"structured": formatter},
        "handlers": handlers,
        "root": {"handlers": list(handlers), "level": level},
        "loggers": {
            # While DEBUG is on, Django's own handlers would write a second, unmasked line.
            "django": {"level": level},
            "django.server": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        },
    }
