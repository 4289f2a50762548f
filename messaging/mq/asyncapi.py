"""`manage.py mq asyncapi`: what this project says and hears over the broker, as an AsyncAPI 3 document."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.core.management.base import BaseCommand

from messaging import conf
from messaging.topology.asyncapi import document

EXAMPLES = """
examples:
  manage.py mq asyncapi > asyncapi.json
  manage.py mq asyncapi --title "Warren's shop" --api-version 2.1.0

The same code gives the same document: kept in version control, it shows what a change means to others.

exit codes: 0 done, 2 wrong arguments
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument("--title", help="name of the application (default: APP_ID)")
    parser.add_argument(
        "--api-version", default="1.0.0", metavar="VERSION", help="version of its interface (default 1.0.0)"
    )


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Print the document."""
    found = document(title=options["title"] or conf.get().app_id, version=options["api_version"])
    command.stdout.write(json.dumps(found, indent=2, ensure_ascii=False))
