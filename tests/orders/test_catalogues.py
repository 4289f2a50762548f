"""The translations are complete, consistent and compiled."""

from pathlib import Path

import pytest

from script.programs import catalogues
from script.programs.catalogues import findings, main, messages_of_source

SOURCE = messages_of_source()


@pytest.mark.parametrize("path", catalogues.catalogues(), ids=lambda path: path.parts[-3])
def test_every_message_is_translated_and_compiled_and_none_is_left_over(path: Path) -> None:
    assert list(findings(path, SOURCE)) == []


def test_each_language_but_the_first_has_a_catalogue() -> None:
    assert {path.parts[-3] for path in catalogues.catalogues()} == {"zh_Hans", "zh_Hant"}


def test_messages_are_found_in_python_and_in_templates() -> None:
    found = catalogues.by_key(SOURCE)
    assert ("Your cart is empty.", None) in found
    assert ("Placed", "state of an order") in found
    assert (("%(count)d minute", "%(count)d minutes"), None) in found
    assert ('Go to the <a href="%(shop)s">shop</a>.', None) in found


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small app with a catalogue of one message, which is compiled."""
    folder = tmp_path / "app/locale/zh_Hans/LC_MESSAGES"
    folder.mkdir(parents=True)
    (tmp_path / "app/code.py").write_text('_("Hello %(name)s")\n')
    (folder / "django.po").write_text('msgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n')
    monkeypatch.setattr(catalogues, "ROOT", tmp_path)
    monkeypatch.setattr(catalogues, "APP", tmp_path / "app")
    assert main([]) == 1
    translate(folder / "django.po", "你好，%(name)s")
    assert main([]) == 0
    return folder / "django.po"


def translate(path: Path, text: str) -> None:
    head, _, _ = path.read_text().rpartition("msgstr")
    path.write_text(f'{head}msgstr "{text}"\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is not translated"), ("你好，%(nom)s", "placeholders or tags differ"), ("%(name)s，你好", "not compiled")],
)
def test_what_is_wrong_with_a_translation_is_said(
    copy: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    translate(copy, text)
    assert main(["--check"]) == 1
    assert said in capsys.readouterr().out


def test_a_new_message_is_reported_then_added_and_one_that_is_gone_removed(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy.parents[3] / "page.html").write_text("{% load i18n %}\n  <p>{% translate 'Bye' %}</p>\n")
    (copy.parents[3] / "code.py").unlink()
    assert main(["--check"]) == 1
    out = capsys.readouterr().out
    assert "'Bye' is missing" in out
    assert "'Hello %(name)s' is in no source file" in out
    assert main([]) == 1
    assert "Hello" not in copy.read_text()
    translate(copy, "再见")
    assert main([]) == 0
    before = copy.read_text()
    assert main([]) == 0
    assert copy.read_text() == before


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--chekc"]) == 2
    assert main(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out
