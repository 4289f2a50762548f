"""The answers when the shop itself fails."""

from __future__ import annotations

import math
import sys
from datetime import timedelta

from django.contrib.sessions.exceptions import SessionInterrupted
from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.views import defaults

from messaging import database

#: Seconds after which a visitor should try again.
RETRY_AFTER = 5


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer an uncaught error: with 503 if the database is away or busy, which passes, else with 500."""
    if database.is_transient(sys.exc_info()[1]):
        return unavailable(HttpResponse(loader.get_template("503.html").render()))
    return defaults.server_error(request)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer a malformed request with 400, as Django does; if the session ended meanwhile, say that instead."""
    if isinstance(exception, SessionInterrupted):
        return HttpResponse(loader.get_template("session_ended.html").render(), status=400)
    return defaults.bad_request(request, exception)


def unavailable(response: HttpResponse) -> HttpResponse:
    """Turn `response` into a 503: not now, try again."""
    response.status_code = 503
    response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def too_many(response: HttpResponse, wait: timedelta) -> HttpResponse:
    """Turn `response` into a 429: too often, try again after `wait`."""
    response.status_code = 429
    response.headers["Retry-After"] = str(math.ceil(wait.total_seconds()))
    return response
