"""script/demo: sets up what is missing, and runs the whole of Warren under a supervisor until Ctrl-C."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import environ

from script.programs.commands import say, stop_on_signals
from script.programs.demo_broker import demo_broker
from script.programs.demo_site import NotReady, check_settings, prepare_site, wait_until_ready
from script.services.amqp import connect
from script.services.owned import ServiceError, end_all, tail
from script.services.ports import is_free
from script.services.rabbitmq import RabbitMQNode
from script.services.supervision import Supervisor

ROOT = Path(__file__).resolve().parents[2]
#: Seconds until the shop answers and the consumers listen; a busy machine needs many more than an idle one.
READY_PATIENCE = 120.0
#: Ends of one program during the start after which it is given up.
HOPELESS = 3
#: Seconds between two looks at whether everything runs.
LOOK_EVERY = 0.5
#: Seconds that a program has to finish its work before it is killed.
GRACE = 30


def main() -> int:
    """Run the demo and return the exit code."""
    began = float(os.environ.pop("WARREN_DEMO_BEGAN", time.time()))
    os.chdir(ROOT)
    stop_on_signals()
    environ.Env.interpolate = False
    environ.Env.read_env(ROOT / ".env")
    # Without DEBUG there is no preview of text messages, and a secret key is required.
    os.environ["DEBUG"] = "1"
    try:
        port = chosen_port()
        with only_one(ROOT / "var" / "demo.lock"):
            end_leftovers()
            refuse_taken(port)
            check_settings()
            with demo_broker(ROOT) as node:
                if node is None:
                    connect(os.environ["AMQP_URL"]).close()
                say("Preparing the database ...")
                password = prepare_site()
                if node is not None:
                    say("Waiting for RabbitMQ ...")
                    node.wait_until_ready()
                run(port, node, password, began)
    except ServiceError as error:
        print(f"script/demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        say("Stopped. Nothing is left running.")
    return 0


def chosen_port() -> int:
    """WARREN_PORT, default 8000. Raises `ServiceError` if it is no port."""
    text = os.environ.get("WARREN_PORT") or "8000"
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ServiceError(f"WARREN_PORT is {text!r}; it must be a number from 1 to 65535.", exit_code=2)
    return int(text)


def refuse_taken(port: int) -> None:
    """Raise `ServiceError` if a server listens there."""
    if not is_free(port):
        another = port % 65535 + 1
        reason = f"port {port} is taken by another program. Choose one: WARREN_PORT={another} script/demo"
        raise ServiceError(reason, exit_code=1)


def end_leftovers() -> None:
    """End what a killed demo of this checkout left. Its web would hold the port for a while, and its stopping broker
    would be taken for a running one."""
    end_all(ROOT / "var" / "demo", how=signal.SIGTERM)
    RabbitMQNode(ROOT / "var" / "rabbitmq").stop()


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds a lock while inside. Raises `ServiceError` if another demo of this checkout holds it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError("the demo of this checkout runs already.", exit_code=1) from None
        yield


def run(port: int, node: RabbitMQNode | None, password: str | None, began: float) -> None:
    """Run every program until we are told to stop; then stop them."""
    supervisor = Supervisor(ROOT / "var" / "demo", ROOT, programs(port), {"LOG_TO_BROKER": "1", **os.environ})
    say(f"Starting {', '.join(supervisor.programs)} ...")
    try:
        url = f"http://127.0.0.1:{port}/"
        try:
            wait_until_ready(url, READY_PATIENCE, check=lambda: still_starting(supervisor, node))
        except NotReady as error:
            raise ServiceError(f"{error} The logs say:\n{supervisor.log_ends()}", error.exit_code) from error
        announce(url, password, node, time.time() - began)
        while True:
            time.sleep(LOOK_EVERY)
            revive(supervisor, node)
    finally:
        say("\nStopping ...")
        supervisor.stop(GRACE)


def programs(port: int) -> dict[str, Sequence[str]]:
    """The commands of the demo by name, besides the broker."""
    here = Path(sys.executable).parent
    manage = (sys.executable, "manage.py")
    celery = (str(here / "celery"), "-A", "project")
    web = (str(here / "gunicorn"), "project.wsgi", f"--bind=127.0.0.1:{port}", "--worker-class=gthread")
    return {
        # Its control socket would be in the home directory, one for all checkouts.
        "web": (*web, "--workers=2", "--threads=8", "--no-control-socket"),
        "consumer": (*manage, "run_consumer", "--all"),
        "rpc": (*manage, "run_rpc_worker", "shipping.quote"),
        "celery": (*celery, "worker", "--concurrency=1", "--loglevel=INFO"),
        "beat": (*celery, "beat", "--pidfile=", "--loglevel=INFO"),
    }


def still_starting(supervisor: Supervisor, node: RabbitMQNode | None) -> None:
    """Raise `ServiceError` if a program ends again and again: another start would not help. Else as `revive`."""
    for name, program in supervisor.programs.items():
        ends = program.own_ends.total()
        if ends >= HOPELESS:
            last_line = tail(program.log, 1).strip()
            raise ServiceError(f"{name} ended {ends} times. It says: {last_line}.", exit_code=1)
    revive(supervisor, node)


def revive(supervisor: Supervisor, node: RabbitMQNode | None) -> None:
    """Start whatever does not run: our broker, and the programs."""
    if node is not None and node.pid is None:
        say("RabbitMQ died; starting it again.")
        node.launch()
    supervisor.tend()


def announce(url: str, password: str | None, node: RabbitMQNode | None, seconds: float) -> None:
    """Print where everything is. The line that begins with "Ready:" comes last: other programs wait for it."""
    # manage.py in another terminal needs the address of the private broker.
    broker = []
    if node:
        broker = [
            f"  RabbitMQ       export AMQP_URL={node.url()}  (for manage.py in another terminal)",
            f"                 export AMQP_MANAGEMENT_URL={node.management_url}",
        ]
    sign_in = f"user admin, password {password}  (shown this once)" if password else "user admin, password as before"
    print(
        f"Everything runs, after {seconds:.0f} s. What they print is in var/demo/. Ctrl-C stops it all.",
        f"  Shop           {url}",
        f"  Admin          {url}admin/  {sign_in}",
        f"  Text messages  {url}dev/sms/",
        *broker,
        "  Logs           .venv/bin/python manage.py mq listen warren.logs '#'  (of all processes, live)",
        f"Ready: {url}",
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
