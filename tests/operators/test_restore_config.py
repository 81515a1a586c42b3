"""The configuration of a stopped cluster through a memory store, and into a directory of its own."""

import os
import shutil

import pytest
from fix_archive import listing, unchanged
from fix_memory import open_memory
from fix_postgres import give_to_server_user

from wal_e.archive import layout
from wal_e.archive.catalog import Catalog
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import DamageError, TargetRefused, UsageError
from wal_e.operators.backup_config import push_configuration
from wal_e.operators.backup_fetch import Hooks, fetch_backup
from wal_e.operators.backup_push import PushOptions, push_offline
from wal_e.operators.backup_verify import Look, verify
from wal_e.operators.restore_config import ConfigTarget
from wal_e.operators.restore_target import TablespaceChoice
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.config_files import ConfigFile, Configuration

HERE = TablespaceChoice(False, None)


class Kept:
    """A cluster, the configuration outside of it, and the store with its backup."""

    def __init__(self, root, store):
        self.data, self.etc, self.store, self.archive = root / "data", root / "etc", store, open_memory(store)

    @property
    def backup(self):
        return Catalog(self.archive.store).find("LATEST")

    @property
    def key(self):
        return layout.config_key(self.backup.name, ".lzo")

    def spoil(self, change):
        content = b"".join(self.store.get(self.key))
        self.store.put(self.key, [change(content)])

    def checked(self, path, target):
        return ConfigTarget.checked(self.archive, self.backup, str(path), str(target))


@pytest.fixture(scope="module")
def pushed(_template, tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    shutil.copytree(_template(1), root / "data")
    (root / "etc").mkdir(mode=0o750)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (root / "data" / name).rename(root / "etc" / name)
    (root / "etc" / "pg_hba.conf").chmod(0o640)
    (root / "data" / "postmaster.opts").write_text(f'/p "-D" "{root}/data" "-c" "config_file={root}/etc/postgresql.conf"\n')
    places = "".join(f"{kind}_file = '{root}/etc/pg_{kind}.conf'\n" for kind in ("hba", "ident"))
    with (root / "etc" / "postgresql.conf").open("a") as stream:
        stream.write(places)
    give_to_server_user(root)
    kept = Kept(root, MemoryStore())
    push_offline(kept.archive, Cluster.open(str(kept.data)), PushOptions(2, 0, "fast", 10, configuration="included"), lambda _: None)
    return kept


@pytest.fixture
def kept(pushed):
    """The same, with a store that the test may spoil."""
    store = MemoryStore()
    for blob in pushed.store.list():
        store.put(blob.key, pushed.store.get(blob.key))
    return Kept(pushed.data.parent, store)


def fetch(kept, target, place):
    config = kept.checked(place, target)
    fetch_backup(kept.archive, str(target), "LATEST", 2, HERE, Hooks(lambda made: config.place(kept.archive, made)))
    return config


def test_files_and_directories_come_back_as_they_were(kept, tmp_path):
    fetch(kept, tmp_path / "data", tmp_path / "config")
    brought = tmp_path / "config" / str(kept.etc).lstrip("/")
    assert listing(brought) == listing(kept.etc)
    assert (brought.stat().st_mode, brought.stat().st_uid) == (kept.etc.stat().st_mode, kept.etc.stat().st_uid)
    assert (tmp_path / "config").stat().st_uid == (tmp_path / "data").stat().st_uid


def test_a_server_is_told_to_use_what_was_brought_and_its_own_data(kept, tmp_path):
    settings = kept.checked(tmp_path / "config", tmp_path / "data").settings("/new data")
    brought = os.path.join(tmp_path / "config", str(kept.etc).lstrip("/"))
    assert settings == {
        "config_file": f"{brought}/postgresql.conf",
        "hba_file": f"{brought}/pg_hba.conf",
        "ident_file": f"{brought}/pg_ident.conf",
        "data_directory": "/new data",
        "external_pid_file": "",
    }


@pytest.mark.parametrize(
    ("place", "words"), [("full", "stray"), ("data/etc", "not apart"), (".", "not empty"), ("file", "not a directory"), ("above", "not apart")]
)
def test_a_place_that_is_not_for_this_is_refused(kept, tmp_path, place, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "stray").touch()
    (tmp_path / "file").touch()
    target = tmp_path / "above" / "data" if place == "above" else tmp_path / "data"
    with unchanged(tmp_path), pytest.raises(TargetRefused, match=words):
        kept.checked(tmp_path / place, target)


def test_a_place_without_a_name_is_not_the_current_directory(kept, tmp_path):
    with pytest.raises(UsageError, match="no name"):
        kept.checked("", tmp_path / "data")


def test_a_backup_without_it_has_nothing_to_bring(_template, tmp_path):
    store = MemoryStore()
    shutil.copytree(_template(1), tmp_path / "origin")
    push_offline(open_memory(store), Cluster.open(str(tmp_path / "origin")), PushOptions(2, 0, "fast", 10, configuration="included"), lambda _: None)
    assert not [blob.key for blob in store.list() if "config" in blob.key]
    with pytest.raises(UsageError, match="keeps no configuration"):
        Kept(tmp_path, store).checked(tmp_path / "config", tmp_path / "data")


@pytest.mark.parametrize(
    "change", [lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], lambda content: content[:-1], lambda content: content + b"x"]
)
def test_whatever_was_changed_in_the_store_is_found_before_anything_is_fetched(kept, tmp_path, change):
    kept.spoil(change)
    with unchanged(tmp_path), pytest.raises(DamageError, match=kept.key):
        kept.checked(tmp_path / "config", tmp_path / "data")
    [(key, _)] = verify(kept.archive, kept.backup, Look("full", 2)).damaged
    assert key == kept.key


def test_an_object_that_was_exchanged_for_another_whole_one_is_found(kept, tmp_path):
    other = ConfigFile("/etc/pg_hba.conf", b"local all all trust\n", 0o600, 0, 0, 0)
    push_configuration(kept.archive, kept.backup.name, Configuration([other], [], {}))
    with unchanged(tmp_path), pytest.raises(DamageError, match=kept.key):
        kept.checked(tmp_path / "config", tmp_path / "data")


def test_the_fast_way_of_verifying_sees_its_size_and_its_absence(kept):
    kept.spoil(lambda content: content[:-1])
    assert [key for key, _ in verify(kept.archive, kept.backup, Look("fast", 2)).damaged] == [kept.key]
    kept.store.delete([kept.key])
    assert [key for key, _ in verify(kept.archive, kept.backup, Look("fast", 2)).damaged] == [kept.key]


def test_a_restore_that_fails_leaves_neither_data_nor_configuration(kept, tmp_path):
    config = kept.checked(tmp_path / "config", tmp_path / "data")

    def place(target):
        kept.spoil(lambda content: content[:-1])
        config.place(kept.archive, target)

    with unchanged(tmp_path), pytest.raises(DamageError, match=kept.key):
        fetch_backup(kept.archive, str(tmp_path / "data"), "LATEST", 2, HERE, Hooks(place))


def test_what_cannot_be_taken_is_refused_before_the_store_is_touched(pushed, tmp_path):
    shutil.copytree(pushed.data, tmp_path / "data")
    (tmp_path / "data" / "postmaster.opts").unlink()
    store = MemoryStore()
    with pytest.raises(UsageError, match="cannot be found"):
        push_offline(open_memory(store), Cluster.open(str(tmp_path / "data")), PushOptions(2, 0, "fast", 10, configuration="included"), lambda _: None)
    assert list(store.list()) == []
