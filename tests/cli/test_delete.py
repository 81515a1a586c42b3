"""The command line of deletion: what is real, what is only shown, and how."""

import json
import os
import re
from datetime import UTC, datetime, timedelta

import pytest

from wal_e.archive import layout
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel
from wal_e.blobstore.file import FileStore
from wal_e.blobstore.registry import call_directly
from wal_e.cli.main import run
from wal_e.errors import BackupNotFound, ConfigurationError, StoreForbidden, UsageError
from wal_e.postgres.wal import Lsn

NOW = datetime.now(UTC)
NAMES = [f"base_0000000100000000000000{number}_00000040" for number in (10, 20, 30)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with three backups and WAL, and an unfinished push; the prefix is in the environment."""
    root = tmp_path / "store"
    root.mkdir()
    store = FileStore(str(root), call_directly)
    for days, name in enumerate(NAMES):
        finished = NOW - timedelta(days=9 - days)
        facts = Facts(finished, finished, Lsn(0), Lsn(0), 1, 7, 15, 16 << 20, 1, 1, "k", "h", True, "2")
        store.put(layout.version_key(name), [b"PostgreSQL 15"])
        store.put(layout.partition_key(name, 0, ".lzo"), [b"x" * 1024])
        store.put(layout.sentinel_key(name), [render_sentinel(Sentinel("S", 0, 1, "/x", (), facts))])
    for number in range(0x0E, 0x33):
        store.put(layout.wal_key(f"0000000100000000000000{number:02X}", ".lzo"), [b"w" * 16])
    store.put(layout.version_key("base_000000010000000000000032_00000040"), [b"PostgreSQL 15"])
    monkeypatch.setenv("WALE_FILE_PREFIX", f"file://localhost{root}")
    return store


@pytest.fixture
def wal_e(capfd):
    """Run a command line; return what it printed."""

    def invoke(*argv, status=0):
        assert run(list(argv), lambda _: None) == status
        return capfd.readouterr().out

    return invoke


def keys(store):
    return [blob.key for blob in store.list()]


@pytest.mark.parametrize("flags", [[], ["-n"], ["--dry-run"], ["--dry-run", "--confirm"], ["--confirm", "-n"], ["--verbose"], ["--json"]])
@pytest.mark.parametrize("words", [["retain", "1"], ["before", "LATEST"], ["everything"], ["garbage", "--older-than", "0"]])
def test_without_confirm_and_with_dry_run_nothing_goes(store, wal_e, flags, words):
    before = keys(store)
    ahead = wal_e("delete", *flags, *words)
    after = wal_e("delete", *words, *flags)
    assert keys(store) == before
    assert ahead == after
    assert ahead


@pytest.mark.parametrize("argv", [["delete", "--confirm", "retain", "1"], ["delete", "retain", "--confirm", "1"], ["delete", "retain", "1", "--confirm"]])
def test_with_confirm_it_is_real_wherever_that_stands(store, wal_e, argv):
    out = wal_e(*argv)
    assert [key for key in keys(store) if key.endswith("sentinel.json")] == [layout.sentinel_key(NAMES[2])]
    assert "Nothing was deleted" not in out


def test_a_dry_run_says_what_would_go_what_stays_and_how_to_do_it(store, wal_e):
    lines = wal_e("delete", "retain", "1").splitlines()
    assert lines[0] == "backups that would be deleted:"
    assert re.fullmatch(rf"  {NAMES[0]}, finished \S+Z, 3 objects, 1\.\d KiB", lines[1])
    assert lines[3:5] == ["WAL that would be deleted:", "  timeline 1: 00000001000000000000000E to 00000001000000000000002F, 34 files, 544 B"]
    assert re.fullmatch(r"would be deleted: 40 objects, \S+ KiB", lines[5])
    assert f"stays: 1 backup, {NAMES[2]}" in lines
    assert "stays: base_000000010000000000000032_00000040, no complete backup: a push may be at work; if none is, delete garbage takes it" in lines
    assert "stays: 3 WAL files" in lines
    assert lines[-1] == "Nothing was deleted, for --confirm was not given. To delete: wal-e delete --confirm retain 1"


def test_a_real_run_says_the_same_in_the_past(store, wal_e):
    shown = wal_e("delete", "retain", "1").splitlines()
    done = wal_e("delete", "--confirm", "retain", "1").splitlines()
    assert done[0] == "backups deleted:"
    assert done[1].split(",")[:3] == shown[1].split(",")[:3]
    assert done[4] == shown[4]
    assert done[5].startswith("deleted: 40 objects")
    assert wal_e("delete", "--confirm", "retain", "1").splitlines()[0] == "nothing was deleted"


def test_both_switches_are_a_dry_run_and_it_says_why(store, wal_e):
    assert "for --dry-run was given" in wal_e("delete", "--dry-run", "--confirm", "everything")


def test_fewer_backups_than_wanted_are_said(store, wal_e):
    assert f"stays: 3 backups, from {NAMES[0]} to {NAMES[2]}, fewer than the 7 to keep" in wal_e("delete", "retain", "7")


def test_verbose_names_every_key(store, wal_e):
    before = set(keys(store))
    shown = wal_e("delete", "-v", "before", NAMES[1]).splitlines()
    done = wal_e("delete", "--confirm", "before", NAMES[1], "-v").splitlines()
    gone = before - set(keys(store))
    assert len(gone) > 10
    assert gone == before & set(shown) == before & set(done)


def test_json_says_all_of_it(store, wal_e):
    document = json.loads(wal_e("delete", "--json", "--verbose", "retain", "2"))
    assert document["deleted"] is False
    assert [(one["name"], one["objects"]) for one in document["backups"]] == [(NAMES[0], 3)]
    assert document["wal"] == [
        {"timeline": 1, "first": "00000001000000000000000E", "last": "00000001000000000000001F", "objects": 18, "size_bytes": 288, "left": 0}
    ]
    assert document["kept"]["backups"] == NAMES[1:]
    assert document["total"]["objects"] == len(document["keys"]) == 21
    assert json.loads(wal_e("delete", "--json", "--confirm", "retain", "2"))["deleted"] is True


def test_garbage_spares_what_is_recent_unless_told(store, wal_e):
    unfinished = layout.version_key("base_000000010000000000000032_00000040")
    wal_e("delete", "--confirm", "garbage")
    assert unfinished in keys(store)
    assert "--confirm garbage --older-than 0" in wal_e("delete", "garbage", "--older-than", "0")
    wal_e("delete", "--confirm", "garbage", "--older-than", "0")
    assert unfinished not in keys(store)
    assert len([key for key in keys(store) if key.endswith("sentinel.json")]) == 3


def test_garbage_takes_temporary_files_of_killed_writers(store, wal_e, tmp_path):
    directory = tmp_path / "store" / "wal_005"
    left = directory / f".000000010000000000000033.lzo.77.{'0' * 16}.tmp"
    left.write_bytes(b"half")
    wal_e("delete", "--confirm", "garbage")
    assert left.exists()
    os.utime(left, (0, 0))
    wal_e("delete", "garbage")
    assert left.exists()
    assert "leftovers of killed commands deleted:\n  1 leftover, 4 B" in wal_e("delete", "--confirm", "garbage")
    assert not left.exists()


def test_everything_leaves_nothing(store, wal_e):
    wal_e("delete", "--confirm", "everything")
    assert keys(store) == []


@pytest.mark.parametrize(
    "words",
    [
        ["retain", "0"],
        ["retain", "-1"],
        ["retain", "two"],
        ["retain"],
        ["retain", "1", "2"],
        ["before"],
        ["before", "yesterday"],
        ["garbage", "--older-than", "-1"],
        ["everything", "all"],
        ["old-versions"],
    ],
)
def test_what_cannot_be_meant_is_refused(store, wal_e, words):
    before = keys(store)
    with pytest.raises(UsageError) as caught:
        wal_e("delete", "--confirm", *words)
    assert caught.value.status == 2
    assert keys(store) == before


def test_an_unknown_backup_is_refused(store, wal_e):
    before = keys(store)
    with pytest.raises(BackupNotFound):
        wal_e("delete", "--confirm", "before", "base_000000010000000000000040_00000040")
    assert keys(store) == before


def test_a_bare_delete_shows_the_help_and_is_a_usage_error(store, capfd):
    assert run(["delete"], lambda _: None) == 2
    said = capfd.readouterr()
    assert said.out == ""
    for verb in ("before", "retain", "everything", "garbage", "--confirm"):
        assert verb in said.err


def test_without_a_prefix_it_is_refused(wal_e):
    with pytest.raises(ConfigurationError):
        wal_e("delete", "retain", "1")


def test_a_failure_is_told_after_what_was_done(store, monkeypatch, capfd):
    real = FileStore.delete

    def refusing(self, doomed):
        doomed = list(doomed)
        if doomed == [layout.sentinel_key(NAMES[0])]:
            raise StoreForbidden("no permission", "It is another's.")
        real(self, doomed)

    monkeypatch.setattr(FileStore, "delete", refusing)
    with pytest.raises(StoreForbidden) as caught:
        run(["delete", "--confirm", "retain", "1"], lambda _: None)
    out = capfd.readouterr().out
    assert NAMES[1] in out
    assert f"stays: 2 backups, from {NAMES[0]} to {NAMES[2]}" in out
    assert caught.value.status == 1
    assert "It is another's." in caught.value.detail
