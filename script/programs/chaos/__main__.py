"""script/chaos: orders in a private world under random faults, then rest, then the certificate."""

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from script.environment import ROOT
from script.programs.chaos.faults import FAULTS, available
from script.programs.chaos.monkey import plan
from script.programs.chaos.report import as_json, as_table
from script.programs.chaos.run import Scenario, carry_out, say
from script.programs.chaos.world import CAN_BE_ASKED, DEAF, HONOURS_KEYS, SETTINGS
from script.programs.commands import stop_on_signals
from script.services.owned import ServiceError

DESCRIPTION = """\
Places orders at a rate in a private world (RabbitMQ, database, SMS gateway, web, consumers, relay, RPC worker), kills,
freezes, cuts and confuses all of it at random, lets it come to rest, and prints a certificate. It is judged from the
database and the gateway's ledger alone. The world is removed afterwards; its folder is kept if something is wrong.
"""
EXAMPLES = """\
examples:
  script/chaos --orders 60 --seconds 15
  script/chaos --orders 2000 --seconds 300 --database postgres --seed 7
  script/chaos --orders 200 --seconds 60 --faults kill-consumer,gateway-misbehaves --every 1
  script/chaos --seconds 60 --seed 7 --plan          print the plan of faults, and do nothing else

exit codes: 0 clean, 1 something is wrong, 2 wrong arguments, 3 a service could not be started, 130 interrupted
"""
DATABASES = ("sqlite", "postgres")
GATEWAYS = (HONOURS_KEYS, CAN_BE_ASKED, DEAF)


def main(arguments: Sequence[str]) -> int:
    """Run chaos and return the exit code."""
    options = _parser().parse_args(arguments)
    scenario = Scenario(
        orders=options.orders,
        seconds=options.seconds,
        seed=secrets.randbelow(10_000) if options.seed is None else options.seed,
        every=options.every,
        faults=options.faults,
        database=options.database,
        gateway=options.gateway,
        settings=options.settings,
    )
    if options.plan:
        print(_written_plan(scenario))
        return 0
    os.chdir(ROOT)
    stop_on_signals()
    say(f"Seed {scenario.seed}: with --seed {scenario.seed} the same faults are planned again.")
    directory = Path(tempfile.mkdtemp(prefix="warren-chaos-"))
    # When root runs this, PostgreSQL's own user must be able to pass.
    directory.chmod(0o711)
    keep = options.keep
    try:
        came = carry_out(scenario, directory)
        keep = keep or not came.is_clean
        print(as_json(scenario, came) if options.json else as_table(scenario, came), flush=True)
        return 0 if came.is_clean else 1
    except ServiceError as error:
        say(f"script/chaos: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("Interrupted. Nothing is left running.")
        return 130
    finally:
        if keep:
            say(f"Logs, database and ledger are kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "script/chaos",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--orders", type=_positive, default=200, metavar="N", help="how many people order (default 200)")
    add("--seconds", type=_positive, default=60, metavar="S", help="over how long (default 60)")
    add("--database", choices=DATABASES, default=DATABASES[0], help="sqlite, or a private postgres (default sqlite)")
    add("--seed", type=int, metavar="K", help="of the plan of faults (default: a random one, printed)")
    add(
        "--every",
        type=_some_seconds,
        default=3.0,
        metavar="S",
        help="seconds between two faults, on average (default 3)",
    )
    add("--faults", type=_names, default=[], metavar="NAMES", help=f"only some of: {', '.join(sorted(FAULTS))}")
    add("--gateway", choices=GATEWAYS, default=GATEWAYS[0], help=f"kind of SMS gateway (default {GATEWAYS[0]})")
    add("--json", action="store_true", help="the certificate as JSON")
    add("--plan", action="store_true", help="print the plan of faults and do nothing")
    add("--keep", action="store_true", help="keep logs, database and ledger even if all is well")
    # For tests only: they replace functions of the product, and chaos must notice.
    add("--settings", default=SETTINGS, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _some_seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError
    return seconds


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in FAULTS]:
        raise argparse.ArgumentTypeError(f"there is no fault {', '.join(unknown)}")
    return names


def _written_plan(scenario: Scenario) -> str:
    names = scenario.faults or available("sqlite" if scenario.database == "sqlite" else "postgresql")
    planned = plan(scenario.seed, scenario.seconds, scenario.every, names)
    return "\n".join(f"{each.at:7.1f} s  {each.fault:<24} {each.seconds:4.1f} s  {each.pick:.3f}" for each in planned)


if __name__ == "__main__":
    if "--plan" in sys.argv:
        # For `| head`. Here alone: a process that calls `main` would end with its next broken connection.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
