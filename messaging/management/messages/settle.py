"""`messages settle`: a person says what became of an effect."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from messaging.actions import audit, settle
from messaging.actions.settle import Verdict
from messaging.management.arguments import EXIT_USAGE
from messaging.models import Effect

HELP = "say what became of an effect that nobody knows of"
EXAMPLES = """
An effect is unknown where it may have been done or not: its answer was lost, and the gateway can neither be asked nor
does it recognise repetitions. Look at the gateway, then say.

examples:
  manage.py messages list --state unknown --state failed               what there is; the last column is the id
  manage.py messages settle 17 --done --reference SM123                it was sent; the gateway calls it so
  manage.py messages settle 17 --not-done --note "not in their log"    it was not, and is sent again
  manage.py messages settle 17 --give-up                               nobody shall try again

exit codes: 0 done, 1 it cannot be settled so, or does not exist, 2 wrong arguments, 3 database unreachable
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of this sub-command."""
    parser.add_argument(
        "effect", metavar="EFFECT", help="its id, or its key: message id, consumer and name, with colons"
    )
    verdicts = parser.add_mutually_exclusive_group(required=True)
    verdicts.add_argument(
        "--done", dest="verdict", action="store_const", const=Verdict.DONE, help="it was done (unknown or failed ones)"
    )
    verdicts.add_argument(
        "--not-done", dest="verdict", action="store_const", const=Verdict.NOT_DONE,
        help="it surely was not, and is carried out again (unknown or failed ones)",
    )  # fmt: skip
    verdicts.add_argument(
        "--give-up", dest="verdict", action="store_const", const=Verdict.GIVE_UP,
        help="nobody shall try again (unknown ones, and those that wait to be tried)",
    )  # fmt: skip
    parser.add_argument("--reference", default="", help="with --done: what the gateway calls it")
    parser.add_argument("--note", default="", metavar="TEXT", help="how you know, for the audit log")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(command: BaseCommand, options: dict[str, Any]) -> None:
    """Settle, and say in which state the effect is. Raises CommandError where that could not be done."""
    verdict: Verdict = options["verdict"]
    if options["reference"] and verdict is not Verdict.DONE:
        raise CommandError("--reference goes with --done.", returncode=EXIT_USAGE)
    effect = settle.find(options["effect"])
    if effect is None:
        raise CommandError(f"There is no effect {options['effect']!r}; `messages list --state unknown` names them.")
    try:
        settled = settle.settle(
            effect, verdict, by=audit.account(), reference=options["reference"], note=options["note"]
        )
    except ValueError as error:
        raise CommandError(f"--{error}.", returncode=EXIT_USAGE) from None
    effect.refresh_from_db()
    if not settled:
        raise CommandError(f"Effect {effect.pk} is {_told(effect)}: it cannot be settled as {verdict}.")
    if options["json"]:
        command.stdout.write(json.dumps({"id": effect.pk, "key": effect.key, "state": effect.state}))
    else:
        command.stdout.write(f"Effect {effect.pk} ({effect.name} of message {effect.message_id}): {_told(effect)}.")


def _told(effect: Effect) -> str:
    return f"{effect.state}, {effect.reference}" if effect.reference else effect.state
