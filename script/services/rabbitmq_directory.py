"""What a private RabbitMQ node finds in its directory and environment, so that it shares nothing."""

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from script.services.owned import ServiceError
from script.services.ports import free_again, free_port
from script.services.service import StateFile, write_private

NODE_NAME = "warren@localhost"
USER = "warren"
PORTS = {"amqp", "management", "distribution", "epmd"}
#: Erlang machines talk to each other on loopback only.
ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
#: Milliseconds between two counts of a queue; by default 5 s.
FRESH_COUNTS = "-rabbit quorum_tick_interval 500 -rabbit collect_statistics_interval 500"
#: The management API takes over what the broker counted every second, by default every 5: {seconds kept, seconds}.
FRESH_STATISTICS = """[{rabbitmq_management, [{sample_retention_policies,
  [{global, [{605, 1}]}, {basic, [{605, 1}]}, {detailed, [{605, 1}]}]}]}].
"""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificates of a node, in PEM form. Clients that show a certificate must have it from the same CA."""

    ca: Path
    certificate: Path
    key: Path
    #: Whether a client must show one.
    wants_client_certificate: bool = False


def installed_scripts() -> Path | None:
    """The directory that holds `rabbitmq-server` and `rabbitmqctl` themselves, or None without RabbitMQ."""
    candidates = [Path("/usr/lib/rabbitmq/bin")]
    if on_path := shutil.which("rabbitmq-server"):
        candidates.insert(0, Path(on_path).resolve().parent)
    for scripts in candidates:
        # The file beside it tells the real script from a distribution's wrapper, which changes the user.
        if (scripts / "rabbitmq-server").exists() and (scripts / "rabbitmq-env").exists():
            return scripts
    return None


def required_scripts() -> Path:
    """As `installed_scripts`; raises `ServiceError` if RabbitMQ is not installed."""
    scripts = installed_scripts()
    if scripts is None:
        raise ServiceError("RabbitMQ is not installed. On Debian and Ubuntu: apt-get install rabbitmq-server")
    return scripts


def prepare(directory: Path, state: StateFile, tls: TlsFiles | None = None) -> None:
    """Make the directory ready for a boot. Ports, password and cookie stay what they were if they can."""
    for name in ("data", "log"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    saved = state.read()
    ports = saved.get("ports", {})
    wanted = PORTS | {"amqps"} if tls else PORTS
    if set(ports) != wanted or not free_again(*ports.values()):
        ports = {name: free_port() for name in sorted(wanted)}
    password = saved.get("password") or secrets.token_urlsafe(18)
    state.save(ports=ports, password=password, pid=None)
    configuration = _configuration(password, ports["management"]) + (_listener(tls, ports["amqps"]) if tls else "")
    write_private(directory / "rabbitmq.conf", configuration)
    write_private(directory / "enabled_plugins", "[rabbitmq_management].\n")
    write_private(directory / "advanced.config", FRESH_STATISTICS)
    # The system's own settings would be read if this file were missing.
    write_private(directory / "rabbitmq-env.conf", "")
    if not (directory / ".erlang.cookie").exists():
        write_private(directory / ".erlang.cookie", secrets.token_hex(20), mode=0o400)


def _configuration(password: str, management_port: int) -> str:
    return (
        f"default_user = {USER}\n"
        f"default_pass = {password}\n"
        "default_user_tags.administrator = true\n"
        "management.tcp.ip = 127.0.0.1\n"
        f"management.tcp.port = {management_port}\n"
        # The limit of RabbitMQ 4. Version 3 takes bodies of 128 MiB.
        "max_message_size = 16777216\n"
    )


def _listener(tls: TlsFiles, port: int) -> str:
    return (
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {tls.ca}\n"
        f"ssl_options.certfile = {tls.certificate}\n"
        f"ssl_options.keyfile = {tls.key}\n"
        "ssl_options.verify = verify_peer\n"
        f"ssl_options.fail_if_no_peer_cert = {str(tls.wants_client_certificate).lower()}\n"
    )


def environment(directory: Path, ports: dict[str, int]) -> dict[str, str]:
    """The environment of the node and of `rabbitmqctl`: ours, with nothing left of another RabbitMQ's."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return {
        **inherited,
        # Erlang looks for its cookie here: the one of the person who runs this stays untouched.
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(ports["epmd"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": NODE_NAME,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(ports["amqp"]),
        "RABBITMQ_DIST_PORT": str(ports["distribution"]),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "rabbitmq.pid"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_CONFIG_FILES": str(directory / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_PLUGINS_EXPAND_DIR": str(directory / "plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "schema"),
        # The script then becomes the Erlang machine instead of watching over it: one process, one pid.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": f"-noinput {ON_LOOPBACK} {FRESH_COUNTS}",
        "RABBITMQ_CTL_ERL_ARGS": ON_LOOPBACK,
    }
