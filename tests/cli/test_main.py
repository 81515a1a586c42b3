"""The table of verbs: right about every module, and read for one of them only."""

import importlib
import pkgutil
import subprocess
import sys

import click
import pytest

import wal_e.cli
from wal_e.cli.main import FAMILIES, run
from wal_e.cli.main import wal_e as root
from wal_e.errors import UsageError


def test_every_family_of_verbs_is_in_the_table_with_all_its_verbs():
    modules = {module.name: importlib.import_module(f"wal_e.cli.{module.name}") for module in pkgutil.iter_modules(wal_e.cli.__path__)}
    families = {name: tuple(command.name for command in module.COMMANDS) for name, module in modules.items() if hasattr(module, "COMMANDS")}
    assert families == FAMILIES
    assert set(root.list_commands(click.Context(root))) == {"version", *(verb for verbs in families.values() for verb in verbs)}


def test_a_restore_imports_neither_other_verbs_nor_what_talks_to_a_server():
    program = "import sys; from wal_e.cli.main import run; run(['restore', '--help'], print); print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names = set(result.stdout.splitlines()[-1].split())
    assert "wal_e.operators.restore" in names
    assert names.isdisjoint({"psycopg", "numpy", "wal_e.cli.archiver", "wal_e.cli.check", "wal_e.cli.delete", "wal_e.cli.drill"})


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["restore", "/pg", "LATEST"], "The call is: wal-e restore [OPTIONS] TARGET. See wal-e restore --help."),
        (["restore", "/pg", "--terse"], "--terse is an option of wal-e itself, and stands before the verb. The call is: wal-e restore [OPTIONS] TARGET."),
        (["restore", "/pg", "--tarse"], "The call is: wal-e restore [OPTIONS] TARGET."),
        (["restire"], "The call is: wal-e [OPTIONS] COMMAND [ARGS]..."),
    ],
)
def test_who_calls_a_verb_the_wrong_way_is_told_how_to_call_it(words, hint):
    with pytest.raises(UsageError) as caught:
        run(["--file-prefix", "file://localhost/nowhere", *words], lambda settings: None)
    assert caught.value.hint.startswith(hint)
