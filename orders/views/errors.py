"""What a visitor sees when the shop itself fails."""

from __future__ import annotations

import math
import sys
from datetime import timedelta

from django.http import HttpRequest, HttpResponse
from django.template import loader
from django.views import defaults

from messaging import database

#: Seconds after which it is worth another try.
RETRY_AFTER = 5


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer for an error that nobody caught: 503 where the database is away or busy, which passes, else 500."""
    if database.passes(sys.exc_info()[1]):
        return unavailable(HttpResponse(loader.get_template("503.html").render()))
    return defaults.server_error(request)


def unavailable(response: HttpResponse) -> HttpResponse:
    """Make `response` one that says: not now, try again."""
    response.status_code = 503
    response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def too_many(response: HttpResponse, wait: timedelta) -> HttpResponse:
    """Make `response` one that says: too often, try again after `wait`."""
    response.status_code = 429
    response.headers["Retry-After"] = str(math.ceil(wait.total_seconds()))
    return response
