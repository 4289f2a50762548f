"""Settings as docs/configuration.md recommends them; a variant may change some by its environment."""

import os
import sys
from importlib.util import find_spec
from typing import Any

import environ
import structlog

env = environ.Env()
environ.Env.interpolate = False
SECRET_KEY = "benchmark"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "benchmarks.shop.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "messaging",
    "benchmarks.shop",
]

DATABASES = {"default": env.db("DATABASE_URL")}
if "sqlite3" in DATABASES["default"]["ENGINE"]:
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    }
else:
    DATABASES["default"] |= {"CONN_MAX_AGE": env.int("CONN_MAX_AGE", 60), "CONN_HEALTH_CHECKS": True}

AMQP_URL = os.environ["AMQP_URL"]
VHOST = AMQP_URL.rpartition("/")[2]
MESSAGING = {
    "AMQP_URLS": [AMQP_URL],
    "APP_ID": "bench",
    "EXCHANGE": "bench.events",
    "RELAY_THREAD": env.bool("RELAY_THREAD", True),
}

if find_spec("django_outbox_pattern"):
    INSTALLED_APPS.append("django_outbox_pattern")
DJANGO_OUTBOX_PATTERN = {
    "DEFAULT_STOMP_HOST_AND_PORTS": [("127.0.0.1", env.int("BENCH_STOMP_PORT"))],
    "DEFAULT_STOMP_USERNAME": "warren",
    "DEFAULT_STOMP_PASSCODE": os.environ["BENCH_PASSWORD"],
    "DEFAULT_STOMP_VHOST": VHOST,
    # It rests this long after each batch; here it has one.
    "DEFAULT_PRODUCER_WAITING_TIME": 0,
}

# The usual log of a production site: one line an event, at INFO, to a file.
_BEFORE: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *_BEFORE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": _BEFORE,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0),
            ],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": sys.stderr}},
    "root": {"handlers": ["stderr"], "level": env("LOG_LEVEL", default="INFO")},
}
