"""The documents tell the truth, as far as a machine can see."""

import re
from pathlib import Path

import grimp
import pytest

from messaging.conf import MessagingSettings

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_messaging_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    _, _, text = text.partition("## `settings.MESSAGING`")
    documented = dict(re.findall(r"^\| `([A-Z_]+)` \|\s*([^|]*?)\s*\|", text, re.MULTILINE))

    assert set(documented) == {name.upper() for name in MessagingSettings.model_fields}
    for name, field in MessagingSettings.model_fields.items():
        if isinstance(field.default, int) and name != "max_body_bytes":
            assert documented[name.upper()].strip("` ") == str(field.default)


def test_every_environment_variable_is_documented() -> None:
    variables = re.findall(r"^#?([A-Z][A-Z_]*)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    text = (ROOT / "docs/configuration.md").read_text()

    assert [name for name in variables if f"`{name}`" not in text] == []


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())

    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_command_in_the_readme_exists() -> None:
    named = set(re.findall(r"manage\.py ([a-z_]+)", (ROOT / "README.md").read_text()))
    built_in = {"check", "migrate", "createsuperuser", "runserver"}
    here = {path.stem for pattern in ("*", "messaging/*") for path in ROOT.glob(f"{pattern}/management/commands/*.py")}

    assert named - built_in <= here


def test_the_chinese_readme_has_the_code_links_headings_and_tables_of_the_english_one() -> None:
    english = (ROOT / "README.md").read_text()
    chinese = (ROOT / "README.zh-Hans.md").read_text()

    assert "](README.zh-Hans.md)" in english
    assert frame_of(chinese.replace("](README.md)", "](README.zh-Hans.md)")) == frame_of(english)


def frame_of(page: str) -> dict[str, list[str] | list[int]]:
    """Return what a page and its translation have in common.

    The order of words differs between languages: code and links within the text are sorted. Comments may be translated.
    """
    fence = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    text = fence.sub("", page)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    return {
        "code blocks": [re.sub(r"(?m)(^|  )# .*$", r"\1#", block) for block in fence.findall(page)],
        "code in the text": sorted(re.findall(r"`([^`\n]+)`", text)),
        "links": sorted(target for target in targets if not target.startswith("#")),
        "headings": re.findall(r"^(#+) ", text, re.MULTILINE),
        "rows of each table": [len(table.splitlines()) for table in re.findall(r"^(?:\|.*\n)+", text, re.MULTILINE)],
    }


def table_of_rooms() -> str:
    _, _, table = (ROOT / "docs/architecture.md").read_text().partition("## The rooms")
    return table.partition("\n## ")[0]


def test_the_table_of_rooms_names_each_room_and_none_that_is_not_there() -> None:
    app = ROOT / "messaging"
    rooms = {f"{each.parent.name}/" for each in app.glob("*/__init__.py")} - {"migrations/", "templatetags/"}

    assert set(re.findall(r"`([a-z]+/)`", table_of_rooms())) == rooms
    files = {each.stem for each in app.glob("*.py")} - {"__init__"}
    assert files - set(re.findall(r"`([a-z]+)`", table_of_rooms())) == set()


def test_no_room_imports_one_below_it_in_the_table() -> None:
    rows = re.findall(r"^\| (.*) \|$", table_of_rooms(), re.MULTILINE)
    row_of = {name: at for at, row in enumerate(rows) for name in re.findall(r"`([a-z]+)/?`", row)}
    graph = grimp.build_graph("messaging", exclude_type_checking_imports=True, cache_dir=None)
    imports = [(each, other) for each in graph.modules for other in graph.find_modules_directly_imported_by(each)]

    def row(module: str) -> int | None:
        return row_of.get(f"{module}.".split(".")[1])

    assert len(imports) > 500
    upward = [
        (each, other) for each, other in imports if None not in (row(each), row(other)) and row(other) > row(each)
    ]
    assert upward == []


def test_the_fault_table_names_every_test_of_a_fault_and_none_that_is_not_there() -> None:
    defined = {
        path: set(re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE))
        for path in ROOT.glob("tests/**/test_*.py")
    }
    # What injects the faults is tested beside them, and is none.
    of_faults = [path for path in defined if path.parent.name == "faults" and path.name != "test_failpoints.py"]
    faults = set().union(*(defined[path] for path in of_faults))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/faults.md").read_text()))

    assert named - set().union(*defined.values()) == set()
    assert faults - named == set()


def test_every_promise_names_the_tests_that_show_it() -> None:
    _, _, section = (ROOT / "docs/faults.md").read_text().partition("## What is promised, and which test shows it\n")
    promises = rows_of(section.partition("\n## ")[0])
    _, _, readme = (ROOT / "README.md").read_text().partition("| what dies, and when |")
    deaths = list(rows_of("| what dies, and when |" + readme.partition("\n\n")[0]))

    assert [promise for promise, shown_by in promises.items() if not re.search(r"`test_\w+`", shown_by)] == []
    assert [death for death in deaths if death not in promises] == []
    assert [promise[:2] for promise in promises][:9] == [f"{number}." for number in range(1, 10)]


def rows_of(text: str) -> dict[str, str]:
    """The rows of the tables of a text, without their heads: the last cell of each by its first."""
    tables = re.findall(r"^\|[-|]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE)
    cells = [row.strip("|").split(" | ") for table in tables for row in table.splitlines()]
    return {row[0].strip(): row[-1] for row in cells}
