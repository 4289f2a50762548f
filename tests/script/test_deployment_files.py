"""compose.yaml, Procfile, Dockerfile and .env.example name only what exists in the project."""

import ast
import re
import shlex
from importlib import import_module

import pytest
import yaml
from django.core.management import get_commands, load_command_class

from script.programs.demo import programs
from tests.support.environment import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PROCFILE = dict(re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE))
DEMO = {name: shlex.join(command) for name, command in programs(8000).items()}
DOCUMENTED = set(re.findall(r"^#?([A-Z][A-Z_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
READ_BY_SCRIPTS = {"WARREN_PORT"}


def single_commands():
    for where, commands in (
        ("compose", {n: s["command"] for n, s in OURS.items()}),
        ("Procfile", PROCFILE),
        ("demo", DEMO),
    ):
        for name, line in commands.items():
            inner = re.fullmatch(r'sh -c "(.*)"', line)
            for part in (inner[1] if inner else line).split(" && "):
                yield pytest.param(shlex.split(part), id=f"{where}-{name}")


@pytest.mark.parametrize("command", list(single_commands()))
def test_every_command_exists_and_understands_its_arguments(command):
    program = command[0].rpartition("/")[2]
    if "manage.py" in command:
        name, *arguments = command[command.index("manage.py") + 1 :]
        assert name in get_commands()
        load_command_class(get_commands()[name], name).create_parser("manage.py", name).parse_args(arguments)
    elif program == "gunicorn":
        assert callable(import_module(command[1]).application)
    else:
        assert program == "celery"
        assert command[1:3] == ["-A", "project"]
        assert import_module("project.celery").app


@pytest.mark.parametrize("line", [OURS["web"]["command"], PROCFILE["web"], DEMO["web"]])
def test_no_web_server_writes_a_log_of_its_own_with_what_visitors_searched_for(line):
    """It would name phone numbers: only our own lines are masked."""
    assert "gunicorn" in line
    assert "--access-logfile" not in line


def test_every_variable_of_our_services_is_documented():
    for service in OURS.values():
        assert set(service["environment"]) <= DOCUMENTED


def test_each_service_waits_only_for_existing_services_with_a_health_check():
    for service in SERVICES.values():
        needed = service.get("depends_on", {})
        for name in needed:
            assert name in SERVICES
        for name, how in needed.items() if isinstance(needed, dict) else ():
            condition = how["condition"]
            assert condition != "service_healthy" or "healthcheck" in SERVICES[name]
            assert condition != "service_completed_successfully" or SERVICES[name]["restart"] == "no"


def test_compose_runs_each_part_and_opens_ports_on_loopback_only():
    assert {"rabbitmq", "postgres", "web", "relay", "consumer", "rpc", "celery"} <= set(SERVICES)
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        mounted = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert mounted <= set(COMPOSE["volumes"])


def test_files_that_compose_and_the_dockerfile_name_exist():
    copied = re.findall(r"^COPY (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    required = [entry for entry in COMPOSE["x-warren"]["env_file"] if isinstance(entry, str)]
    configured = [entry["file"] for entry in COMPOSE["configs"].values()]
    for name in [*copied, *required, *configured]:
        assert (ROOT / name).exists()


def test_visitors_of_compose_reach_the_web_process_through_the_buffering_proxy_alone():
    configuration = (ROOT / "nginx.conf").read_text()
    port = re.search(r"listen (\d+);", configuration)[1]
    assert "ports" not in SERVICES["web"]
    assert SERVICES["proxy"]["ports"] == [f"127.0.0.1:8000:{port}"]
    host, web_port = re.search(r"server (\w+):(\d+);", configuration).groups()
    assert f"--bind=0.0.0.0:{web_port}" in SERVICES[host]["command"]
    assert SERVICES["web"]["environment"]["PROXIES"] == "1"


def read_by_settings():
    """The names given to `env.str(…)` and its kind, and to the project's functions that read what they are named."""
    readers_of, tree = (ast.parse((ROOT / "project" / name).read_text()) for name in ("environment.py", "settings.py"))
    functions = [node for node in readers_of.body if isinstance(node, ast.FunctionDef)]
    readers = {function.name for function in functions if [each.arg for each in function.args.args][:1] == ["name"]}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
        reads = re.fullmatch(r"env\.\w+", ast.unparse(call.func)) or ast.unparse(call.func) in readers
        name = call.args[0]
        if reads and isinstance(name, ast.Constant):
            yield name.value


def test_env_example_documents_exactly_the_variables_that_are_read():
    assert {*read_by_settings(), *READ_BY_SCRIPTS} == DOCUMENTED


def test_only_the_settings_read_the_environment():
    for app in ("messaging", "orders"):
        for path in (ROOT / app).rglob("*.py"):
            assert "os.environ" not in path.read_text(), path
