"""script/catalogues: the shop's translations, brought up to date with its source and compiled.

Babel reads and writes the catalogues, so that no gettext has to be installed.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from gettext import GNUTranslations
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "orders"
USAGE = """\
Usage: script/catalogues [--check]

Writes each new message of orders/ into orders/locale/*/LC_MESSAGES/django.po, removes those that are gone, and compiles
the catalogues (django.mo). Then translate what it lists, and run it again.

  --check   write nothing; only list what is missing

Exit codes: 0 all is translated and compiled, 1 something is missing, 2 wrong arguments.
"""
#: Functions of django.utils.translation, beside those that Babel knows, and which arguments are the message.
KEYWORDS = DEFAULT_KEYWORDS | {
    "gettext_lazy": None,
    "ngettext_lazy": (1, 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext_lazy": ((1, "c"), 2, 3),
}
WIDTH = 120
#: A message as it is looked up: its text (or singular and plural) and its context.
Key = tuple[str | tuple[str, ...], str | None]


def main(arguments: Sequence[str]) -> int:
    """Update and compile the catalogues, or check them. Return the exit code."""
    if {"-h", "--help"}.intersection(arguments):
        print(USAGE, end="")
        return 0
    if set(arguments) - {"--check"}:
        print(USAGE, end="", file=sys.stderr)
        return 2
    source = messages_of_source()
    for path in catalogues():
        if "--check" not in arguments:
            update(path, source)
    found = [finding for path in catalogues() for finding in findings(path, source)]
    print(*found or ["All messages are translated, and the catalogues are compiled."], sep="\n")
    return 1 if found else 0


def catalogues() -> list[Path]:
    """Return the path of each language's catalogue."""
    return sorted(APP.glob("locale/*/LC_MESSAGES/django.po"))


def messages_of_source() -> Catalog:
    """Return all messages of the app's Python files and templates, with the files where they are."""
    source = Catalog()
    for path in sorted([*APP.rglob("*.py"), *APP.rglob("*.html")]):
        python = path.read_text()
        if path.suffix == ".html":
            # Django's own translation of a template into calls of gettext. Each line becomes a statement.
            python = "\n".join(line.strip() for line in templatize(python).splitlines())
        for _, text, comments, context in extract("python", BytesIO(python.encode()), KEYWORDS, ["Translators:"]):
            source.add(text, None, [(str(path.relative_to(ROOT)), 1)], auto_comments=comments, context=context)
    return source


def update(path: Path, source: Catalog) -> None:
    """Bring the catalogue up to date with the messages of the source, and compile it."""
    catalogue = read(path)
    source.creation_date = catalogue.creation_date  # else each run would change the file
    catalogue.update(source, no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    with path.open("wb") as file:
        write_po(file, catalogue, width=WIDTH, sort_by_file=True, include_lineno=False)
    with path.with_suffix(".mo").open("wb") as file:
        write_mo(file, catalogue)


def findings(path: Path, source: Catalog) -> Iterator[str]:
    """Say what is missing or wrong in a catalogue, one line each."""
    catalogue = read(path)
    wanted, there = by_key(source), by_key(catalogue)
    where = path.relative_to(ROOT)
    for key in wanted.keys() - there.keys():
        yield f"{where}: {key[0]!r} is missing; run script/catalogues"
    for key in there.keys() - wanted.keys():
        yield f"{where}: {key[0]!r} is in no source file; run script/catalogues"
    for key, message in there.items():
        if not all(_strings(message)) or message.fuzzy:
            yield f"{where}: {key[0]!r} is not translated"
        elif problem := next(_problems(catalogue, message), ""):
            yield f"{where}: {key[0]!r}: {problem}"
    with path.with_suffix(".mo").open("rb") as file:
        compiled = GNUTranslations(file)
    if any(_looked_up(compiled, message) != _strings(message)[0] for message in there.values()):
        yield f"{where}: not compiled; run script/catalogues"


def read(path: Path) -> Catalog:
    """Return the catalogue in a .po file."""
    with path.open("rb") as file:
        return read_po(file, locale=path.parts[-3])


def by_key(catalogue: Catalog) -> dict[Key, Message]:
    """Return the messages of a catalogue, without its header."""
    return {_key(message): message for message in catalogue if message.id}


def _key(message: Message) -> Key:
    return (message.id if isinstance(message.id, str) else tuple(message.id or ())), message.context


def _looked_up(compiled: GNUTranslations, message: Message) -> str:
    """Return the first form of the translation that the compiled catalogue has."""
    one, *many = (message.id,) if isinstance(message.id, str) else message.id
    if many:
        return compiled.ngettext(one, many[0], 1)
    return compiled.pgettext(message.context, one) if message.context else compiled.gettext(one)


def _strings(message: Message) -> tuple[str, ...]:
    return (message.string,) if isinstance(message.string, str) else tuple(message.string or ())


def _problems(catalogue: Catalog, message: Message) -> Iterator[str]:
    """Say which placeholders or tags differ between a message and its translation."""
    original = message.id if isinstance(message.id, str) else message.id[-1]
    for string in _strings(message):
        if _marks(string) != _marks(original):
            yield f"placeholders or tags differ in {string!r}"
    yield from (str(error) for error in message.check(catalogue))


def _marks(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)[sd]|\{\w+\}|<[^>]+>", text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
