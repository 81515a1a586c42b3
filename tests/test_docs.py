from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from wal_e import __version__, errors
from wal_e.cli.main import wal_e
from wal_e.operators import wal_fetch
from wal_e.settings import PREFIXES, TABLE

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *sorted((ROOT / "docs").rglob("*.rst"))]}
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "wal_e").rglob("*.py")))
OPTIONS_OF_OTHERS = {"--trust-model", "--gs-access-key-id"}  # of gpg, and of the original WAL-E


def generated():
    spec = importlib.util.spec_from_file_location("docs_generated", ROOT / "docs" / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inline_literals(text: str) -> list[str]:
    return [" ".join(literal.split()) for literal in re.findall(r"``(.+?)``", text, re.DOTALL)]


def code_lines(text: str) -> Iterator[str]:
    """The lines of literal blocks, and the inline literals."""
    indent = None
    for line in text.replace("\\\n", " ").splitlines():
        depth = len(line) - len(line.lstrip())
        if indent is not None and line.strip() and depth <= indent:
            indent = None
        if indent is not None:
            yield line
        elif line.endswith("::") and not line.lstrip().startswith(".. "):
            indent = depth
    yield from inline_literals(text)


def shown_commands() -> list[tuple[str, str]]:
    """Page and words of each ``wal-e`` command line that is shown whole."""
    lines = [(page, line) for page, text in PAGES.items() for line in code_lines(text)]
    found = {(page, words.strip()) for page, line in lines for words in re.findall(r"(?:^|[\s'/])wal-e(\s[^'|;>&#]*)", line)}
    return sorted((page, words) for page, words in found if words and not re.search(r"\bVERB\b|\[OPTIONS\]", words))


def options_of(command: click.Command) -> set[str]:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}


def commands() -> list[click.Command]:
    verbs = (verb(name) for name in wal_e.list_commands(click.Context(wal_e)))
    return [wal_e, *(command for command in verbs if not command.hidden)]


def verb(name: str) -> click.Command:
    return wal_e.get_command(click.Context(wal_e), name)


def rows_of_readme_statuses() -> list[tuple[str, int, str]]:
    rows = re.findall(r"^(\S.+?) +(\d+) +(\S.*)$", PAGES["README.rst"].partition("Exit statuses\n")[2].partition("\n\nPostgreSQL takes")[0], re.MULTILINE)
    return [(command, int(status), meaning) for command, status, meaning in rows]


def quoted_messages() -> list[str]:
    """What the runbook quotes in the first column of its tables of messages."""
    tables = re.split(r"^\.\. list-table::$", PAGES["docs/recovery.rst"], flags=re.MULTILINE)[1:]
    cells = [cell for table in tables if "* - Message\n" in table for cell in re.findall(r"^   \* - (``.+?)\n     - ", table, re.MULTILINE | re.DOTALL)]
    return [message for cell in cells for message in inline_literals(cell)]


def literal_text_of(source: str) -> str:
    """The source with string literals that follow each other joined, as the compiler joins them."""
    return re.sub(r'"\s*\n\s*f?"', "", source)


def test_every_setting_is_in_the_generated_table():
    table = generated().settings_table()
    for name in [*PREFIXES.values(), *(row.variable for row in TABLE)]:
        assert f"``{name}``" in table
    for row in TABLE:
        assert row.doc in table
        assert not row.default or f"``{row.default}``" in table


def test_every_error_is_in_the_generated_table():
    table = generated().errors_table()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.WaleError) and kind is not errors.WaleError]
    assert len(kinds) > 20
    for kind in kinds:
        assert f"* - ``{kind.__name__}``\n     - {kind.status}\n     - {'yes' if kind.transient else ''}\n" in table


@pytest.mark.parametrize(("page", "name"), [("configuration", "settings"), ("exit-statuses", "errors")])
def test_a_page_that_asks_for_a_table_gets_it(page, name):
    text = PAGES[f"docs/{page}.rst"]
    filled = generated().fill_in(text)
    assert f".. generated:: {name}" in text
    assert ".. generated::" not in filled
    assert generated().TABLES[name]() in filled


def test_every_variable_in_the_pages_is_a_setting():
    known = {row.variable for row in TABLE} | set(PREFIXES.values())
    named = {(page, name) for page, text in PAGES.items() for name in re.findall(r"\bWALE_[A-Z0-9_]*[A-Z0-9]\b", text)}
    assert len(named) > 10
    assert [entry for entry in sorted(named) if entry[1] not in known] == []


@pytest.mark.parametrize(("page", "words"), shown_commands())
def test_every_command_that_is_shown_is_understood(page, words):
    argv = shlex.split(words)
    position = next((number for number, word in enumerate(argv) if word in wal_e.list_commands(click.Context(wal_e))), None)
    if position is None:
        assert argv in (["--help"], ["--version"])
        return
    command, arguments = verb(argv[position]), argv[position + 1 :]
    if position:
        wal_e.make_context("wal-e", argv[:position])
    if arguments:  # a verb alone is a name, not a command line
        command.make_context(command.name, arguments)


def test_commands_are_found_in_the_pages():
    pages = {page for page, _ in shown_commands()}
    assert {"README.rst", "docs/quickstart.rst", "docs/recovery.rst", "docs/configuration.rst"} <= pages


def test_every_option_in_the_pages_exists():
    known = set.union({"--help", *OPTIONS_OF_OTHERS}, *(options_of(command) for command in commands()))
    named = {(page, literal.split()[0].partition("=")[0]) for page, text in PAGES.items() for literal in inline_literals(text) if re.match(r"--[a-z]", literal)}
    assert len(named) > 20
    assert [entry for entry in sorted(named) if entry[1] not in known] == []


def test_every_verb_and_option_is_in_the_pages():
    text = "".join(PAGES.values())
    for command in commands():
        assert command.name == "wal-e" or f"``{command.name}" in text
        for option in options_of(command):
            assert re.search(rf"{option}\b", text), option


def test_the_readme_has_the_exit_statuses_of_the_program():
    others = {status for command, status, _ in rows_of_readme_statuses() if command.startswith("all but")}
    fetch = {status for command, status, _ in rows_of_readme_statuses() if command == "``wal-fetch``"}
    everything = {status for command, status, _ in rows_of_readme_statuses() if command == "all"}
    assert everything == {errors.EXIT_OK}
    assert others == {errors.EXIT_LATER, errors.EXIT_NEVER}
    assert fetch == {wal_fetch.EXIT_ABSENT, wal_fetch.EXIT_TEMPORARY, wal_fetch.EXIT_FAILURE}


def test_the_statuses_of_wal_fetch_are_the_defaults_of_their_settings():
    defaults = {row.field: row.default for row in TABLE}
    assert defaults["fetch_status_temporary"] == str(wal_fetch.EXIT_TEMPORARY)
    assert defaults["fetch_status_failure"] == str(wal_fetch.EXIT_FAILURE)


@pytest.mark.parametrize("message", sorted(set(quoted_messages())))
def test_every_message_in_the_runbook_is_one_of_the_program(message):
    assert message in literal_text_of(SOURCE)


def test_the_runbook_quotes_messages():
    assert len(quoted_messages()) > 30


def test_the_changelog_begins_with_this_version():
    assert re.search(r"^(\S+) \(unreleased\)$|^(\d\S+)$", PAGES["CHANGELOG.rst"], re.MULTILINE).group(1) == __version__
