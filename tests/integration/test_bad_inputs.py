"""Every bad input, tried for real: answered clearly, with nothing lost and nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from build_wal import build_segment
from fix_archive import Gate, Watched, archive_into_store, fake_lzop, listing, refusal, script, settled, stored_wal, unchanged, warnings
from fix_postgres import Server, give_to_server_user

from wal_e.postgres.control import read_system_identifier

VERBS = ("backup-push", "backup-fetch", "backup-list", "wal-push", "wal-fetch")
CODERS = ("backup-push", "backup-fetch", "wal-push", "wal-fetch")
NEVER = {"wal-fetch": 200}
"""The status of what will not succeed until somebody changes something: 2, but for wal-fetch."""

USAGE = 2
LATER = 1


def command(pushed, verb, target):
    """A command line that would work, with the target as the path that it writes to, if it writes."""
    words = {
        "backup-push": lambda: [str(pushed.server.data), "--fast"],
        "backup-fetch": lambda: [str(target), "LATEST"],
        "backup-list": list,
        "wal-push": lambda: [str(segments(pushed.server)[0])],
        "wal-fetch": lambda: [stored_wal(pushed.store)[0], str(target), "-p", "0"],
    }
    return [verb, *words[verb]()]


def segments(server):
    """Paths of the segments in pg_wal that hold WAL, oldest first."""
    last = server.psql("select pg_walfile_name(pg_current_wal_lsn())")
    return sorted(path for path in (server.data / "pg_wal").iterdir() if len(path.name) == 24 and path.name <= last)


def refuse(pushed, verb, status, *words, env=None, options=()):
    """Run a verb that must be refused, and leave the store and its target as they were; return the error's record.

    A backup that was begun makes the server archive a segment, which stays.
    """
    target = pushed.server.directory / f"target-{verb}"
    with unchanged(pushed.store / "basebackups_005" if verb == "backup-push" else pushed.store, target):
        record = refusal(Watched(pushed.server, pushed.store)(*options, *command(pushed, verb, target), env=env), status, *words)
    settled(pushed.server)
    return record


class TestThePrefix:
    @pytest.mark.parametrize("verb", VERBS)
    def test_none_is_refused(self, pushed, verb):
        refuse(pushed, verb, NEVER.get(verb, USAGE), "no storage prefix is set", "WALE_FILE_PREFIX", "--envdir", env={"WALE_FILE_PREFIX": ""})

    @pytest.mark.parametrize("verb", VERBS)
    def test_two_are_refused(self, pushed, verb):
        refuse(
            pushed, verb, NEVER.get(verb, USAGE), "two storage prefixes are set", "WALE_FILE_PREFIX, WALE_S3_PREFIX", env={"WALE_S3_PREFIX": "s3://bucket/pg"}
        )

    def test_two_options_are_refused_and_one_wins_over_the_environment(self, pushed):
        refuse(pushed, "backup-list", USAGE, "two storage prefixes are set", "--file-prefix, --gs-prefix", options=["--file-prefix", "a", "--gs-prefix", "b"])
        wal_e = Watched(pushed.server)
        listed = wal_e("--file-prefix", f"file://localhost{pushed.store}", "backup-list", env={"WALE_FILE_PREFIX": "", "WALE_S3_PREFIX": "s3://bucket/pg"})
        assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 3)

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize(
        ("prefix", "words"),
        [
            ("ftp://host/pg", ["'ftp://host/pg' does not start with one of file://, gs://, s3://"]),
            ("/var/backups", ["'/var/backups' does not start with", "write file://localhost/var/backups"]),
            ("s3:///pg", ["the storage prefix names no bucket", "s3:// and the path"]),
            ("file://backups/pg", ["'file://backups/pg'", "write file://localhost/backups/pg"]),
            ("file://localhost/no/such/place", ["/no/such/place", "mkdir -p /no/such/place"]),
        ],
    )
    def test_one_that_cannot_be_used_is_refused(self, pushed, verb, prefix, words):
        refuse(pushed, verb, NEVER.get(verb, USAGE), *words, env={"WALE_FILE_PREFIX": prefix})

    def test_a_file_is_no_store(self, pushed):
        path = pushed.server.data / "PG_VERSION"
        refuse(pushed, "backup-list", USAGE, str(path), env={"WALE_FILE_PREFIX": f"file://localhost{path}"})


class TestSettingsAndTools:
    @pytest.mark.parametrize("verb", CODERS)
    def test_without_lzop_nothing_is_done(self, pushed, verb):
        empty = pushed.server.directory / "empty"
        empty.mkdir(exist_ok=True)
        refuse(pushed, verb, NEVER.get(verb, USAGE), "lzop cannot be started", f"PATH is {empty}", "apt-get install lzop", env={"PATH": str(empty)})

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize(
        ("name", "value"), [("WALE_LOG_LEVEL", "loud"), ("WALE_LOG_DESTINATION", "nowhere"), ("WALE_RETRIES", "0"), ("WALE_GPG_KEY_ID", "--output=x")]
    )
    def test_a_setting_that_cannot_be_used_is_named(self, pushed, verb, name, value):
        refuse(pushed, verb, NEVER.get(verb, USAGE), name, repr(value), env={name: value})

    @pytest.mark.parametrize("name", ["WALE_FETCH_DEADLINE", "WALE_FETCH_STATUS_FAILURE"])
    def test_a_bad_setting_of_wal_fetch_never_says_absent(self, pushed, name):
        absent = ["wal-fetch", "0000000A0000000000000001", str(pushed.server.directory / "absent"), "-p", "0"]
        wal_e = Watched(pushed.server, pushed.store)
        assert wal_e(*absent).returncode == 1
        result = wal_e(*absent, env={name: "soon"})
        assert result.returncode == (200 if name == "WALE_FETCH_DEADLINE" else 1)

    def test_a_misspelt_setting_is_a_warning_of_backup_push(self, spoiled, cluster):
        result = Watched(spoiled.server, spoiled.store)("backup-push", str(cluster), "--while-offline", env={"WALE_GPG_KEYID": "me"})
        assert [record.message for record in warnings(result)] == ["WALE_GPG_KEYID is not a setting"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["backup-push"], "missing argument"),
            (["backup-push", "DATA", "--pool-size", "0"], "invalid value"),
            (["backup-push", "DATA", "--cluster-read-rate-limit", "0"], "invalid value"),
            (["backup-fetch", "DATA"], "missing argument"),
            (["backup-fetch", "DATA", "LATEST", "--blind-restore", "--restore-spec", "SOURCE"], "exclude each other"),
            (["wal-push"], "missing argument"),
            (["wal-push", "a", "b"], "unexpected extra argument"),
            (["wal-push", "a", "-p", "many"], "invalid value"),
            (["backup-lsit"], "no such command"),
            (["--terse"], "missing command"),
        ],
    )
    def test_a_wrong_command_line_is_explained(self, pushed, words, said):
        refusal(Watched(pushed.server, pushed.store)(*words), USAGE, said)

    @pytest.mark.parametrize("words", [[], ["a"], ["a", "b", "c"], ["a", "b", "-p", "many"], ["a", "b", "--no-such-option"], ["a", "b", "-p"]])
    def test_a_wrong_command_line_of_wal_fetch_is_never_absence(self, pushed, words):
        refusal(Watched(pushed.server, pushed.store)("wal-fetch", *words), 200)


class TestTheServer:
    def test_none_running_is_said(self, make_server):
        server = make_server()
        wal_e = Watched(server, server.make_directory("store"))
        with unchanged(server.data, server.directory / "store"):
            refusal(wal_e("backup-push", str(server.data), env={"PGHOST": ""}), LATER, f"no PostgreSQL server runs on {server.data}", "--while-offline")
            refusal(wal_e("backup-push", str(server.data)), LATER, "cannot connect to PostgreSQL", str(server.socket_dir), "Is the server running")

    def test_one_that_does_not_archive_is_refused(self, make_server):
        server = make_server()
        server.start()
        store = server.make_directory("store")
        refusal(Watched(server, store)("backup-push", str(server.data), "--fast"), USAGE, "does not archive its WAL", "archive_mode is off", "archive_command")
        assert [name for name in listing(store) if name.startswith("basebackups")] == []

    def test_the_wrong_data_directory_of_another_cluster_is_refused(self, pushed, make_server):
        other = make_server(wal_segsize_mb=16)
        wal_e = Watched(pushed.server, pushed.store)
        with unchanged(pushed.store, other.data):
            refusal(wal_e("backup-push", str(other.data), "--fast"), USAGE, "belong to different clusters", str(other.data), "PGHOST")
        settled(pushed.server)

    def test_the_wrong_data_directory_of_a_copy_is_refused(self, pushed, make_server):
        copy = make_server(wal_segsize_mb=1)
        wal_e = Watched(pushed.server, pushed.store)
        with unchanged(pushed.store, copy.data):
            refusal(wal_e("backup-push", str(copy.data), "--fast"), USAGE, "the server does not run on this data directory", str(copy.data), "a copy")
        settled(pushed.server)

    def test_a_user_without_the_privilege_is_told_what_to_grant(self, pushed):
        pushed.server.psql("create role modest login")
        try:
            record = refuse(pushed, "backup-push", USAGE, 'TO "modest"', env={"PGUSER": "modest"})
            pushed.server.psql(record.hint[record.hint.index("GRANT") :])
            refuse(pushed, "backup-push", USAGE, "lzop cannot be started", env={"PGUSER": "modest", "PATH": "/nowhere"})
        finally:
            pushed.server.psql("drop owned by modest; drop role modest")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [("missing", ["no such directory"]), ("empty", ["no PG_VERSION in it"]), ("file", ["no such directory"]), ("9.6", ["PostgreSQL 9.6"])],
    )
    def test_a_directory_that_is_no_data_directory_is_refused(self, pushed, kind, words):
        directory = pushed.server.directory / f"kind-{kind}"
        if kind == "file":
            directory.touch()
        elif kind != "missing":
            directory.mkdir()
        if kind == "9.6":
            (directory / "PG_VERSION").write_text("9.6\n")
        with unchanged(pushed.store, directory):
            for offline in ([], ["--while-offline"]):
                result = Watched(pushed.server, pushed.store)("backup-push", str(directory), "--fast", *offline)
                refusal(result, USAGE, str(directory), *words)

    def test_a_directory_with_a_damaged_pg_control_is_refused(self, make_server):
        server = make_server()
        control = server.data / "global/pg_control"
        content = bytearray(control.read_bytes())
        content[100] ^= 1
        control.write_bytes(content)
        refusal(Watched(server, server.make_directory("store"))("backup-push", str(server.data), "--while-offline"), USAGE, "pg_control")

    def test_a_second_push_at_once_is_refused_and_the_first_goes_on(self, make_server):
        server = make_server(wal_segsize_mb=1)
        store = archive_into_store(server)
        gate, wal_e = Gate(server, 1), Watched(server, store)
        with wal_e.started("backup-push", str(server.data), "--fast", env=gate.env) as first:
            gate.wait(first)
            names = set(listing(store / "basebackups_005"))  # the content still grows
            refusal(wal_e("backup-push", str(server.data), "--fast"), LATER, f"another backup-push works on {server.data}")
            refusal(wal_e("backup-push", str(server.data), "--while-offline"), LATER, f"another backup-push works on {server.data}")
            assert set(listing(store / "basebackups_005")) == names
            gate.open()
            assert (first.wait(60), first.stdout.read()) == (0, "")
        assert len(wal_e("backup-list").stdout.splitlines()) == 2


@contextlib.contextmanager
def forbidden(path, mode=0o000):
    """Take permissions away, from everybody but root, whom no test runs wal-e as."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


class TestPermissions:
    @pytest.mark.parametrize("verb", ["backup-push", "wal-push"])
    def test_a_store_that_cannot_be_written_is_named(self, spoiled, cluster, pushed, verb):
        victim = spoiled.store / ("basebackups_005" if verb == "backup-push" else "wal_005")
        segment = command(pushed, "wal-push", None)[1]
        for path in (spoiled.store / "wal_005").glob(f"{os.path.basename(segment)}*"):
            path.unlink()
        words = {"backup-push": ["backup-push", str(cluster), "--while-offline"], "wal-push": ["wal-push", segment]}[verb]
        with forbidden(victim, 0o500), unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)(*words), LATER, f"no permission for {victim}", "usually postgres")

    @pytest.mark.parametrize("verb", ["backup-fetch", "backup-list", "wal-fetch"])
    def test_a_store_that_cannot_be_read_is_named_and_never_empty(self, spoiled, verb):
        target = spoiled.server.directory / "target"
        stdout = HEADER if verb == "backup-list" else ""
        words = command(spoiled, verb, target)
        for victim in (spoiled.store, spoiled.store / "basebackups_005", spoiled.store / "wal_005"):
            if victim.name == ("basebackups_005" if verb == "wal-fetch" else "wal_005"):
                continue
            with forbidden(victim):
                refusal(Watched(spoiled.server, spoiled.store)(*words), 200 if verb == "wal-fetch" else LATER, "no permission for", stdout=stdout)
            assert not target.exists()

    def test_a_file_of_the_cluster_that_cannot_be_read_is_named(self, make_server):
        server = make_server(wal_segsize_mb=1)
        store = archive_into_store(server)
        victim = server.data / "postgresql.auto.conf"
        with forbidden(victim):
            refusal(Watched(server, store)("backup-push", str(server.data), "--fast"), LATER, f"permission denied while reading {victim}")
        assert not (store / "basebackups_005").exists()
        settled(server)

    def test_a_data_directory_that_cannot_be_read_is_named(self, make_server):
        server = make_server()
        store = server.make_directory("store")
        for victim in (server.data, server.data / "base", server.data / "global/pg_control"):
            with forbidden(victim):
                refusal(Watched(server, store)("backup-push", str(server.data), "--while-offline"), LATER, "permission denied", str(victim))
        assert [name for name in listing(store) if "base" in name] == []

    def test_a_target_that_cannot_be_made_is_named(self, spoiled):
        place = spoiled.server.make_directory("place")
        (place / "empty").mkdir()
        give_to_server_user(place)
        wal_e = Watched(spoiled.server, spoiled.store)
        with unchanged(place), forbidden(place, 0o500):
            refusal(wal_e("backup-fetch", str(place / "new"), "LATEST"), LATER, "permission denied", f"{place / 'new'} cannot be made", "install -d -o")
            with forbidden(place / "empty", 0o500):
                refusal(wal_e("backup-fetch", str(place / "empty"), "LATEST"), LATER, "permission denied", f"{place / 'empty'} cannot be written to")
            refusal(wal_e("wal-fetch", stored_wal(spoiled.store)[0], str(place / "RECOVERYXLOG"), "-p", "0"), 200, "permission denied", str(place))

    def test_a_wal_file_that_cannot_be_read_is_named(self, spoiled):
        path = spoiled.server.directory / "000000010000000000000077"
        path.write_bytes(build_segment(path.name))
        give_to_server_user(path)
        with forbidden(path), unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), LATER, f"permission denied while reading {path}")
        path.unlink()
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), LATER, f"there is no WAL file {path}", "working directory")


HEADER = (
    "name\tlast_modified\texpanded_size_bytes\twal_segment_backup_start\twal_segment_offset_backup_start\t"
    "wal_segment_backup_stop\twal_segment_offset_backup_stop\n"
)


@pytest.fixture
def small_disk(_server_root):
    """A function that mounts a file system of so many bytes, for the server's user to write in."""
    mounted = []

    def mount(size):
        place = _server_root / f"disk-{len(mounted)}"
        place.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", place], capture_output=True, text=True)
        if made.returncode:
            place.rmdir()
            pytest.skip(f"a file system can be mounted by root only: {made.stderr}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def limited_files(size):
    """What makes a child meet "File too large" in files beyond this size."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}


class TestFullDisks:
    def test_a_restore_that_does_not_fit_is_refused_before_it_begins(self, spoiled, small_disk):
        disk = small_disk("5m")
        refusal(Watched(spoiled.server, spoiled.store)("backup-fetch", str(disk / "target"), "LATEST"), USAGE, "not enough space", str(disk), "are free")
        assert listing(disk).keys() == {"."}

    def test_a_disk_that_fills_up_during_a_restore_is_left_as_it_was(self, spoiled, small_disk):
        disk = small_disk("64m")
        fills = fake_lzop(spoiled.server, f"if call > 1: os.system('cat /dev/zero >> {disk}/filler 2>/dev/null')")
        result = Watched(spoiled.server, spoiled.store)("backup-fetch", str(disk / "target"), "LATEST", env={**fills, "WALE_FETCH_DEADLINE": "0.5"})
        refusal(result, USAGE, "no space left", "Free some space")
        assert listing(disk).keys() == {".", "filler"}

    def test_a_limit_on_the_size_of_files_is_explained(self, spoiled, cluster):
        target = spoiled.server.directory / "target"
        wal_e = Watched(spoiled.server, spoiled.store)
        refusal(wal_e("backup-fetch", str(target), "LATEST", env={"WALE_FETCH_DEADLINE": "0.5"}, **limited_files(100_000)), LATER, "File too large")
        segment = wal_e("wal-fetch", stored_wal(spoiled.store)[0], str(target), "-p", "0", env={"WALE_FETCH_DEADLINE": "0.5"}, **limited_files(100_000))
        refusal(segment, 200, "no space left", "the limit on the size of files")
        with unchanged(spoiled.store):
            result = wal_e("backup-push", str(cluster), "--while-offline", **limited_files(100_000))
            refusal(result, USAGE, "the file system of the store refuses", "ulimit -f")
        assert not target.exists()

    def test_a_segment_that_does_not_fit_leaves_nothing(self, spoiled, small_disk):
        disk = small_disk("512k")
        name = stored_wal(spoiled.store)[0]
        result = Watched(spoiled.server, spoiled.store)("wal-fetch", name, str(disk / "RECOVERYXLOG"), "-p", "0", env={"WALE_FETCH_DEADLINE": "0.5"})
        refusal(result, 200, "no space left")
        assert listing(disk).keys() == {"."}

    def test_a_store_that_is_full_keeps_nothing_of_what_did_not_fit(self, pushed, spoiled, cluster, small_disk):
        disk = small_disk("1m")
        wal_e = Watched(spoiled.server, disk)
        shutil.copy(pushed.store / "identity_005.json", disk)
        give_to_server_user(disk)
        (disk / "filler").write_bytes(bytes(251 * 4096))  # four pages are left
        with unchanged(disk):
            soon = {"WALE_PUSH_DEADLINE": "0.5"}
            refusal(wal_e("backup-push", str(cluster), "--while-offline", env=soon), LATER, "the file system of the store is full", "Free some")
            segment = wal_file(spoiled.server, NAME, build_segment(NAME, system_identifier=read_system_identifier(str(cluster))))
            refusal(wal_e("wal-push", str(segment), env=soon), LATER, "the file system of the store is full", NAME)


class TestTheTarget:
    @pytest.mark.parametrize("stray", ["file", ".hidden", "pg_wal/", "PG_VERSION", "pg_tblspc/file", "postmaster.pid"])
    def test_one_that_is_not_empty_is_refused_and_not_touched(self, pushed, spoiled, stray):
        target = spoiled.server.make_directory("target")
        (target / stray).parent.mkdir(exist_ok=True)
        if stray.endswith("/"):
            (target / stray).mkdir()
        else:
            (target / stray).write_text("precious")
        give_to_server_user(target)
        words = ["a server runs on", "postmaster.pid"] if stray == "postmaster.pid" else ["is not empty", os.path.basename(stray.rstrip("/"))]
        with unchanged(target):
            refusal(
                Watched(spoiled.server, spoiled.store)("backup-fetch", str(target), "LATEST"), USAGE, str(target), *words, "nothing in this one was touched"
            )

    def test_a_running_server_is_not_restored_over(self, pushed):
        with unchanged(pushed.store):
            refusal(Watched(pushed.server, pushed.store)("backup-fetch", str(pushed.server.data), "LATEST"), USAGE, "a server runs on", str(pushed.server.data))
        assert pushed.server.psql("select count(*) from t2") == "1000"

    def test_a_file_and_a_dangling_link_are_refused(self, spoiled):
        target = spoiled.server.directory / "target"
        wal_e = Watched(spoiled.server, spoiled.store)
        target.write_text("precious")
        with unchanged(target):
            refusal(wal_e("backup-fetch", str(target), "LATEST"), USAGE, f"{target} is not a directory")
            refusal(wal_e("backup-fetch", str(target / "below"), "LATEST"), LATER, str(target / "below"))
        target.unlink()
        target.symlink_to("/nowhere")
        refusal(wal_e("backup-fetch", str(target), "LATEST"), USAGE, f"{target} is not a directory")
        assert target.is_symlink()

    def test_an_empty_directory_is_filled_through_a_link_too(self, spoiled):
        wal_e = Watched(spoiled.server, spoiled.store)
        real = spoiled.server.make_directory("real")
        link = spoiled.server.directory / "link"
        link.symlink_to(real)
        assert wal_e("backup-fetch", str(link), "LATEST").returncode == 0
        assert (real / "global/pg_control").exists()

    @pytest.mark.parametrize("query", ["base_000000010000000000000099_00000040", "base_0000000100000000_00000040", "latest", "", "../../etc", "LATEST "])
    def test_a_backup_that_there_is_not_is_named(self, spoiled, query):
        target = spoiled.server.directory / "target"
        refusal(Watched(spoiled.server, spoiled.store)("backup-fetch", str(target), query), LATER, query, "backup-list")
        assert not target.exists()

    def test_an_empty_store_has_no_latest_backup_and_an_empty_list(self, spoiled):
        empty, target = spoiled.server.make_directory("empty"), spoiled.server.directory / "target"
        wal_e = Watched(spoiled.server, empty)
        refusal(wal_e("backup-fetch", str(target), "LATEST"), LATER, "there is no backup yet", str(empty))
        for words in (["backup-list"], ["backup-list", "LATEST"], ["backup-list", "--detail", "base_000000010000000000000099_00000040"]):
            result = wal_e(*words)
            assert (result.returncode, result.stdout, result.stderr) == (0, HEADER, "")
        refusal(wal_e("backup-list", "newest"), LATER, "'newest' is neither LATEST nor the name of a backup", stdout=HEADER)
        assert json.loads(wal_e("backup-list", "--json").stdout) == []
        assert listing(empty).keys() == {"."}
        assert not target.exists()


def spoil(path, change):
    """Change a stored file, keeping its owner and mode."""
    content = bytearray(path.read_bytes())
    changed = change(content)
    path.write_bytes(content if changed is None else changed)


def flip(position):
    """A change that flips one bit at a fraction of the length."""

    def change(content):
        content[int(position * (len(content) - 1))] ^= 0x10

    return change


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "cut by one byte": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "with zeros added": lambda content: content + bytes(4096),
    "empty": lambda content: bytearray(b""),
    "of other bytes": lambda content: bytearray(b"<html>not what you asked for</html>"),
    "flipped at its start": flip(0),
    "flipped in its header": lambda content: content.__setitem__(20, content[20] ^ 1),
    "flipped in the middle": flip(0.5),
    "flipped near its end": flip(0.999),
}


def parts(spoiled, name=None):
    """Paths of the partitions of a backup, by default the newest."""
    return sorted((spoiled.store / "basebackups_005" / (name or spoiled.names[-1]) / "tar_partitions").iterdir())


class TestDamagedBackups:
    def fetch(self, spoiled, status, *words, query="LATEST"):
        """Fetch a backup that cannot be had, which leaves the store and the target's place alone."""
        target = spoiled.server.directory / "target"
        with unchanged(spoiled.store, target):
            return refusal(Watched(spoiled.server, spoiled.store)("backup-fetch", str(target), query), status, *words)

    @pytest.mark.parametrize("kind", DAMAGE)
    @pytest.mark.parametrize("which", ["first", "last"])
    def test_a_changed_partition_is_named(self, spoiled, kind, which):
        victim = parts(spoiled)[0 if which == "first" else -1]
        spoil(victim, DAMAGE[kind])
        self.fetch(spoiled, USAGE, f"{spoiled.names[-1]}/tar_partitions/{victim.name}")

    def test_exchanged_partitions_are_noticed(self, spoiled):
        first, last = parts(spoiled)[0], parts(spoiled)[-1]
        first.rename(first.with_name("other"))
        last.rename(first)
        first.with_name("other").rename(last)
        self.fetch(spoiled, USAGE, f"tar_partitions/{first.name}")

    @pytest.mark.parametrize("which", ["first", "last"])
    def test_a_partition_of_another_backup_is_noticed(self, spoiled, which):
        index = 0 if which == "first" else -1
        victim = parts(spoiled)[index]
        shutil.copy(parts(spoiled, spoiled.names[0])[index], victim)
        self.fetch(spoiled, USAGE, f"tar_partitions/{victim.name}", "not the partition that was stored", "The manifest says")

    @pytest.mark.parametrize("which", ["first", "last"])
    def test_a_missing_partition_is_named(self, spoiled, which):
        victim = parts(spoiled)[0 if which == "first" else -1]
        victim.unlink()
        self.fetch(spoiled, USAGE, f"{spoiled.names[-1]}/tar_partitions/{victim.name}", "another backup")

    @pytest.mark.parametrize("kind", sorted(set(DAMAGE) - {"with zeros added"}))  # which lzop passes over, and its content is verified
    def test_a_changed_manifest_is_named(self, spoiled, kind):
        victim = spoiled.store / "basebackups_005" / spoiled.names[-1] / "manifest.jsonl.lzo"
        spoil(victim, DAMAGE[kind])
        self.fetch(spoiled, USAGE, f"{spoiled.names[-1]}/manifest.jsonl.lzo")

    def test_the_manifest_of_another_backup_is_noticed(self, spoiled):
        older, newer = (spoiled.store / "basebackups_005" / name / "manifest.jsonl.lzo" for name in spoiled.names)
        shutil.copy(older, newer)
        self.fetch(spoiled, USAGE, f"{spoiled.names[-1]}/manifest.jsonl.lzo is not the manifest of this backup")

    def test_a_missing_manifest_is_named(self, spoiled):
        (spoiled.store / "basebackups_005" / spoiled.names[-1] / "manifest.jsonl.lzo").unlink()
        self.fetch(spoiled, USAGE, f"{spoiled.names[-1]}/manifest.jsonl.lzo", "another backup")

    def test_the_backup_beside_a_damaged_one_is_restored(self, spoiled):
        for path in parts(spoiled):
            path.unlink()
        target = spoiled.server.directory / "target"
        assert Watched(spoiled.server, spoiled.store)("backup-fetch", str(target), spoiled.names[0]).returncode == 0
        assert (target / "global/pg_control").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"not JSON", b"\xff\xfe", b"[]", b"null", b"7", b"{}", b'{"spec": 3}', b'{"wal_e": null}', "cut", "without its manifest", "of the future"],
    )
    def test_a_sentinel_that_cannot_be_understood_is_named_and_hides_no_other_backup(self, spoiled, content):
        victim = spoiled.store / "basebackups_005" / f"{spoiled.names[-1]}_backup_stop_sentinel.json"
        document = json.loads(victim.read_bytes())
        if content == "cut":
            content = victim.read_bytes()[:-20]
        elif content == "without its manifest":
            del document["wal_e"]["manifest_key"]
            content = json.dumps(document).encode()
        elif content == "of the future":
            document["wal_e"]["start_lsn"] = 17
            content = json.dumps(document).encode()
        victim.write_bytes(content)
        key = f"basebackups_005/{victim.name}"
        self.fetch(spoiled, USAGE, f"{key} cannot be understood")
        self.fetch(spoiled, USAGE, f"{key} cannot be understood", query=spoiled.names[-1])
        wal_e = Watched(spoiled.server, spoiled.store)
        for words in (["backup-list"], ["backup-list", "--detail"], ["backup-list", "--json"]):
            listed = wal_e(*words)
            assert listed.returncode == 0
            assert [record.message for record in warnings(listed)] == [f"{key} cannot be understood"]
            if "--json" in words:
                older, newer = json.loads(listed.stdout)
                assert (older["name"], older["damage"]) == (spoiled.names[0], None)
                assert (newer["name"], key in newer["damage"]) == (spoiled.names[1], True)
            else:
                assert [line.split("\t")[0] for line in listed.stdout.splitlines()[1:]] == spoiled.names
        assert wal_e("backup-fetch", str(spoiled.server.directory / "older"), spoiled.names[0]).returncode == 0

    def test_a_damaged_identity_is_named(self, spoiled, cluster):
        (spoiled.store / "identity_005.json").write_text("{")
        target = spoiled.server.directory / "target"
        wal_e = Watched(spoiled.server, spoiled.store)
        with unchanged(spoiled.store):
            refusal(wal_e("backup-push", str(cluster), "--while-offline"), USAGE, "identity_005.json cannot be understood", "pg_controldata")
            refusal(wal_e("wal-fetch", "00000001000000000000009A", str(target), "-p", "0"), 200, "identity_005.json cannot be understood")
        assert not target.exists()


NAME = "000000010000000000000077"


def wal_file(server, name, content):
    """Write a WAL file outside any cluster, owned by the server's user."""
    path = server.directory / name
    path.write_bytes(content)
    give_to_server_user(path)
    return path


def real_segment(pushed, index=0):
    """Name and content of a segment that the server has archived."""
    name = stored_wal(pushed.store)[index]
    content = subprocess.run(["lzop", "-d", "-c", pushed.store / f"wal_005/{name}.lzo"], capture_output=True, check=True).stdout
    return name, content


def destination_of(spoiled, role):
    """Where a server of this role would want a segment; there is no such server."""
    pg_wal = spoiled.server.make_directory("data") / "pg_wal"
    pg_wal.mkdir()
    if role:
        (spoiled.server.data / role).touch()
    give_to_server_user(spoiled.server.data)
    return pg_wal / "RECOVERYXLOG"


class TestWalFiles:
    @pytest.mark.parametrize(
        ("name", "change", "words"),
        [
            (None, lambda content: content[:-1], ["wrong size", "1048575 bytes"]),
            (None, lambda content: content + b"x", ["wrong size", "1048577 bytes"]),
            (None, lambda content: b"", ["only 0 bytes"]),
            (None, lambda content: bytes(len(content)), ["0x0000"]),
            ("000000010000000000000076", bytes, ["000000010000000000000076 holds another segment's WAL"]),
            ("0000000100000001000000F6", bytes, ["0000000100000001000000F6 holds another segment's WAL"]),
            ("000000010000000000001000", bytes, ["is not the name of a WAL file"]),
            ("notwal", bytes, ["'notwal' is not the name of a WAL file", "%p"]),
            ("00000001000000000000007a", bytes, ["is not the name of a WAL file"]),
            (f"{NAME}.lzo", bytes, ["is not the name of a WAL file"]),
            (f"{NAME}.partial", lambda content: content[:100], [f"{NAME}.partial has the wrong size"]),
        ],
    )
    def test_a_file_that_is_not_what_its_name_says_is_refused(self, spoiled, pushed, name, change, words):
        real, content = real_segment(pushed)
        path = wal_file(spoiled.server, name or real, change(content))
        with unchanged(spoiled.store, path):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), USAGE, path.name, *words)

    def test_a_directory_is_refused(self, spoiled):
        path = spoiled.server.make_directory(NAME)
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), LATER, str(path))

    def test_a_segment_of_another_cluster_is_refused_by_the_prefix(self, spoiled):
        path = wal_file(spoiled.server, NAME, build_segment(NAME))
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), USAGE, "this prefix belongs to another cluster", "7710235014459963137")

    def test_a_segment_of_another_cluster_is_refused_by_the_data_directory(self, spoiled, cluster):
        path = cluster / "pg_wal" / NAME
        path.write_bytes(build_segment(NAME))
        give_to_server_user(path)
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), USAGE, f"{NAME} comes from another cluster", "7710235014459963137")

    def test_a_history_file_of_another_cluster_is_refused(self, spoiled, make_server):
        other = make_server(wal_segsize_mb=16)
        path = other.data / "pg_wal/00000002.history"
        path.write_text("1\t0/3000000\tno recovery target specified\n")
        give_to_server_user(path)
        with unchanged(spoiled.store):
            refusal(Watched(other, spoiled.store)("wal-push", str(path)), USAGE, "this prefix belongs to another cluster")

    @pytest.mark.parametrize("name", ["00000002.history", f"{NAME}.00000028.backup", f"{NAME}.partial", NAME])
    def test_each_kind_of_wal_file_goes_there_and_back(self, make_place, name):
        server = make_place()
        wal_e = Watched(server, server.make_directory("store"))
        content = build_segment(NAME) if name.startswith(NAME) and not name.endswith("backup") else b"1\t0/3000000\tpromoted\n"
        path, destination = wal_file(server, name, content), server.directory / "RECOVERYXLOG"
        for _ in range(2):
            pushed_once = wal_e("wal-push", str(path))
            assert (pushed_once.returncode, pushed_once.stdout, pushed_once.stderr) == (0, "", "")
        fetched = wal_e("wal-fetch", name, str(destination), "-p", "0")
        assert (fetched.returncode, fetched.stdout, fetched.stderr) == (0, "", "")
        assert destination.read_bytes() == content

    def test_other_content_under_a_name_that_is_taken_is_a_conflict(self, spoiled, pushed):
        name, content = real_segment(pushed)
        path = wal_file(spoiled.server, name, content)
        wal_e = Watched(spoiled.server, spoiled.store)
        with unchanged(spoiled.store):
            again = wal_e("wal-push", str(path))
            assert (again.returncode, again.stderr) == (0, "")
            path.write_bytes(content[:-1] + b"\x01")
            refusal(wal_e("wal-push", str(path)), USAGE, f"the store holds another {name}", "split brain", "Nothing was overwritten")
        history = wal_file(spoiled.server, "00000002.history", b"one")
        assert wal_e("wal-push", str(history)).returncode == 0
        history.write_bytes(b"another")
        with unchanged(spoiled.store):
            refusal(wal_e("wal-push", str(history)), USAGE, "the store holds another 00000002.history")

    def test_a_stored_segment_that_is_damaged_is_neither_overwritten_nor_taken_for_this_one(self, spoiled, pushed):
        name, content = real_segment(pushed)
        path = wal_file(spoiled.server, name, content)
        spoil(spoiled.store / f"wal_005/{name}.lzo", flip(0.5))
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)("wal-push", str(path)), USAGE, f"the store holds {name} already, damaged", f"{name}.lzo", "by hand")

    @pytest.mark.parametrize("role", ["standby.signal", "recovery.signal", None])
    @pytest.mark.parametrize("kind", sorted(set(DAMAGE) - {"with zeros added"}))
    def test_a_damaged_stored_segment_is_never_absent_and_never_delivered(self, spoiled, kind, role):
        name = stored_wal(spoiled.store)[0]
        spoil(spoiled.store / f"wal_005/{name}.lzo", DAMAGE[kind])
        destination = destination_of(spoiled, role)
        with unchanged(spoiled.store, spoiled.server.data):
            refusal(Watched(spoiled.server, spoiled.store)("wal-fetch", name, str(destination), "-p", "0"), 200, f"wal_005/{name}.lzo")

    def test_a_stored_segment_that_is_another_one_is_not_delivered(self, spoiled):
        first, second = stored_wal(spoiled.store)[:2]
        shutil.copy(spoiled.store / f"wal_005/{first}.lzo", spoiled.store / f"wal_005/{second}.lzo")
        destination = wal_file(spoiled.server, "RECOVERYXLOG", b"what was there")
        with unchanged(spoiled.store, destination):
            result = Watched(spoiled.server, spoiled.store)("wal-fetch", second, str(destination), "-p", "0")
            refusal(result, 200, f"what is stored as {second} is not that WAL file", "holds another segment's WAL")

    def test_a_segment_is_not_delivered_to_another_cluster(self, spoiled, make_server):
        other = make_server(wal_segsize_mb=16)
        name = stored_wal(spoiled.store)[0]
        with unchanged(other.data):
            result = Watched(other, spoiled.store)("wal-fetch", name, str(other.data / "pg_wal/RECOVERYXLOG"), "-p", "0")
            refusal(result, 200, f"what is stored as {name} is not that WAL file", "comes from another cluster")

    @pytest.mark.parametrize("name", ["notwal", "../../identity_005.json", "", "00000001000000000000007a", "identity_005.json"])
    def test_a_name_that_is_none_is_never_absent(self, spoiled, name):
        destination = spoiled.server.directory / "RECOVERYXLOG"
        refusal(Watched(spoiled.server, spoiled.store)("wal-fetch", name, str(destination), "-p", "0"), 200, "is not the name of a WAL file")
        assert not destination.exists()

    @pytest.mark.parametrize("name", [NAME, "00000009.history", f"{NAME}.partial", f"{NAME}.00000028.backup"])
    def test_a_file_that_the_store_does_not_have_is_absent_without_a_word(self, spoiled, name):
        destination = wal_file(spoiled.server, "RECOVERYXLOG", b"what was there")
        with unchanged(spoiled.server.directory):
            result = Watched(spoiled.server, spoiled.store)("wal-fetch", name, str(destination))
            shutil.rmtree(max(spoiled.server.directory.glob("tmp-*")))
        assert (result.returncode, result.stdout, result.stderr) == (1, "", "")

    def test_a_neighbour_that_cannot_be_pushed_or_marked_does_not_change_the_status(self, pushed, spoiled, cluster):
        (name, content), (other, _) = real_segment(pushed, 0), real_segment(pushed, 1)
        pg_wal = cluster / "pg_wal"
        for segment in (name, other):
            (pg_wal / segment).write_bytes(content)
            (pg_wal / "archive_status" / f"{segment}.ready").touch()
            (spoiled.store / f"wal_005/{segment}.lzo").unlink()
        give_to_server_user(pg_wal)
        wal_e = Watched(spoiled.server, spoiled.store)
        result = wal_e("wal-push", str(pg_wal / name))
        assert (result.returncode, [record.message for record in warnings(result)]) == (0, [f"{other} was not pushed yet: {other} holds another segment's WAL"])
        assert sorted(os.listdir(pg_wal / "archive_status")) == [f"{name}.ready", f"{other}.ready"]
        (pg_wal / other).write_bytes(real_segment(pushed, 1)[1])
        with forbidden(pg_wal / "archive_status", 0o500):
            result = wal_e("wal-push", str(pg_wal / name))
        assert (result.returncode, [record.message for record in warnings(result)]) == (0, [f"{other} is stored but could not be marked done"])
        result = wal_e("wal-push", str(pg_wal / name))
        assert (result.returncode, result.stderr) == (0, "")
        assert sorted(os.listdir(pg_wal / "archive_status")) == [f"{other}.done", f"{name}.ready"][:: 1 if other < name else -1]


class TestAStoreThatVanishes:
    def test_during_a_push_nothing_is_recorded_and_the_next_push_succeeds(self, spoiled, cluster):
        away, soon = spoiled.store.with_name("away"), {"WALE_PUSH_DEADLINE": "0.5"}
        gate, wal_e = Gate(spoiled.server, 1), Watched(spoiled.server, spoiled.store)
        before = wal_e("backup-list").stdout
        with wal_e.started("backup-push", str(cluster), "--while-offline", env={**gate.env, **soon}) as push:
            gate.wait(push)
            spoiled.store.rename(away)
            gate.open()
            result = ended(push)
        refusal(result, LATER, "the directory of the store went away", str(spoiled.store), "mounted")
        assert not spoiled.store.exists()
        away.rename(spoiled.store)
        assert wal_e("backup-list").stdout == before
        assert wal_e("backup-push", str(cluster), "--while-offline").returncode == 0
        assert len(wal_e("backup-list").stdout.splitlines()) == len(before.splitlines()) + 1

    def test_during_a_push_that_waits_it_goes_on_when_the_store_comes_back(self, spoiled, cluster):
        away = spoiled.store.with_name("away")
        gate, wal_e = Gate(spoiled.server, 1), Watched(spoiled.server, spoiled.store)
        with wal_e.started("backup-push", str(cluster), "--while-offline", env=gate.env) as push:
            gate.wait(push)
            spoiled.store.rename(away)
            gate.open()
            for line in push.stderr:
                if "trying again" in line:
                    break
            away.rename(spoiled.store)
            assert ended(push).returncode == 0
        assert len(wal_e("backup-list").stdout.splitlines()) == 4

    def test_during_a_fetch_nothing_is_left(self, spoiled):
        away, target = spoiled.store.with_name("away"), spoiled.server.directory / "target"
        gate, wal_e = Gate(spoiled.server, 2), Watched(spoiled.server, spoiled.store)
        with wal_e.started("backup-fetch", str(target), "LATEST", "-p", "1", env={**gate.env, "WALE_FETCH_DEADLINE": "0.5"}) as fetch:
            gate.wait(fetch)
            assert target.exists()
            spoiled.store.rename(away)
            gate.open()
            result = ended(fetch)
        refusal(result, LATER, "the directory of the store went away", str(spoiled.store))
        assert not target.exists()

    @pytest.mark.parametrize("role", ["standby.signal", "recovery.signal", None])
    def test_before_a_wal_fetch_nothing_is_absent(self, spoiled, role):
        destination = destination_of(spoiled, role)
        spoiled.store.rename(spoiled.store.with_name("away"))
        with unchanged(spoiled.server.data):
            result = Watched(spoiled.server, spoiled.store)("wal-fetch", NAME, str(destination), env={"WALE_FETCH_DEADLINE": "0.5"})
            refusal(result, 75 if role == "standby.signal" else 200, "the directory of the store does not exist", str(spoiled.store))

    @pytest.mark.parametrize("role", ["standby.signal", "recovery.signal", None])
    def test_a_mount_point_without_its_file_system_says_nothing_of_absence(self, spoiled, role):
        destination = destination_of(spoiled, role)
        empty = spoiled.server.make_directory("empty")
        with unchanged(spoiled.server.data, empty):
            result = Watched(spoiled.server, empty)("wal-fetch", NAME, str(destination))
            refusal(result, 75 if role == "standby.signal" else 200, "this prefix holds no WAL at all", str(empty), "not mounted")

    def test_during_a_wal_push_the_server_is_told_to_ask_again(self, spoiled, pushed):
        name, content = real_segment(pushed)
        (spoiled.store / f"wal_005/{name}.lzo").unlink()
        path = wal_file(spoiled.server, name, content)
        gate, wal_e = Gate(spoiled.server, 1), Watched(spoiled.server, spoiled.store)
        with wal_e.started("wal-push", str(path), env={**gate.env, "WALE_PUSH_DEADLINE": "0.5"}) as push:
            gate.wait(push)
            spoiled.store.rename(spoiled.store.with_name("away"))
            gate.open()
            refusal(ended(push), LATER, "the directory of the store went away")


def ended(process):
    """Wait for a started process and return it as a completed one, with what it has still to say."""
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class TestStandardDescriptors:
    SPOILED = (
        "<&- >&- 2>&-",
        ">&-",
        "2>&-",
        "<&-",
        ">/dev/full 2>/dev/full",
        "> >(exec <&-) 2>&1",
    )

    def run(self, pushed, redirection, *words):
        """Run wal-e with standard descriptors that cannot be used; return its status."""
        argv = ["bash", "-c", f'exec "$@" {redirection}', "bash", script(), *words]
        return pushed.server.run(argv, env={"WALE_FILE_PREFIX": f"file://localhost{pushed.store}", "WALE_LOG_DESTINATION": "stderr"}, check=False).returncode

    @pytest.mark.parametrize("redirection", SPOILED)
    def test_they_do_not_change_a_status(self, spoiled, cluster, redirection):
        target = spoiled.server.directory / "target"
        name = stored_wal(spoiled.store)[0]
        destination = str(spoiled.server.directory / "RECOVERYXLOG")
        assert self.run(spoiled, redirection, "version") == 0
        assert self.run(spoiled, redirection, "backup-list") == 0
        assert self.run(spoiled, redirection, "backup-list", "--json") == 0
        assert self.run(spoiled, redirection, "backup-list", "newest") == LATER
        assert self.run(spoiled, redirection, "backup-lsit") == USAGE
        assert self.run(spoiled, redirection, "backup-push", str(cluster), "--while-offline") == 0
        assert self.run(spoiled, redirection, "backup-fetch", str(target), spoiled.names[-1]) == 0
        assert (target / "global/pg_control").exists()
        assert self.run(spoiled, redirection, "backup-fetch", str(target), spoiled.names[-1]) == USAGE
        assert self.run(spoiled, redirection, "wal-fetch", name, destination, "-p", "0") == 0
        assert os.path.getsize(destination) == 1 << 20
        assert self.run(spoiled, redirection, "wal-fetch", NAME, destination) == 1
        assert self.run(spoiled, redirection, "wal-fetch", "notwal", destination) == 200
        assert self.run(spoiled, redirection, "wal-push", "notwal") == USAGE
        os.rename(destination, spoiled.server.directory / name)
        assert self.run(spoiled, redirection, "wal-push", name) == 0


def recovered(make_server, origin, target, advice=None):
    """Start a server on a restored directory and let it recover from the archive to its end, by the printed advice if that is given."""
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name.startswith(("WALE_", "GNUPG"))}
    if advice is None:
        (target / "recovery.signal").touch()
        server.configure(restore_command='wal-e wal-fetch "%f" "%p" -p 0')
    else:
        server.run(["bash", "-eu"], input=advice, libpq=False)
    server.start(archive_mode="off")
    server.wait_for("select not pg_is_in_recovery()")
    return server


class Spaced(NamedTuple):
    """A stopped server with two tablespaces, its store with a backup, and the location of each tablespace by its OID."""

    server: Server
    store: Path
    locations: dict[str, Path]


@pytest.fixture(scope="module")
def spaced(make_shared_server):
    server = make_shared_server()
    store = archive_into_store(server)
    for number, name in enumerate(("space one", "100% space")):
        server.psql(f"create tablespace s{number} location '{server.make_directory(name)}'")
        server.psql(f"create table t{number} tablespace s{number} as select generate_series(1, 1000) as n")
    rows = server.psql("select oid, pg_tablespace_location(oid) from pg_tablespace where spcname like 's_' order by oid").splitlines()
    server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    server.stop()
    return Spaced(server, store, {oid: Path(location) for oid, location in (row.split("|") for row in rows)})


def has_its_tables(server, locations):
    """Check the tables in both tablespaces, with new rows too, and where they are."""
    for number in range(2):
        server.psql(f"insert into t{number} values (1001); checkpoint")
        assert server.psql(f"select count(*), sum(n) from t{number}") == "1001|501501"
    shown = "select oid::text, pg_tablespace_location(oid) from pg_tablespace where spcname like 's_' order by oid"
    assert dict(row.split("|") for row in server.psql(shown).splitlines()) == {oid: str(location) for oid, location in locations.items()}
    server.stop()


class TestTablespaces:
    def fetch(self, spaced, *options, target=None):
        return Watched(spaced.server, spaced.store)("backup-fetch", str(target or spaced.server.directory / "target"), "LATEST", *options)

    def moved(self, spaced, make_place):
        """New places for the tablespaces, in the directory of a new server."""
        other = make_place()
        return other, {oid: other.make_directory(f"moved-{oid}") for oid in spaced.locations}

    def test_without_links_and_choice_they_are_asked_for(self, spaced):
        target = spaced.server.directory / "target"
        with unchanged(*spaced.locations.values(), target):
            oid = next(iter(spaced.locations))
            refusal(self.fetch(spaced), USAGE, f"{target}/pg_tblspc/{oid}", "--restore-spec SOURCE", "--blind-restore")

    def test_links_that_are_there_are_used(self, spaced, make_place, make_server):
        other, moved = self.moved(spaced, make_place)
        target = other.make_directory("restored")
        (target / "pg_tblspc").mkdir()
        for oid, place in moved.items():
            (target / "pg_tblspc" / oid).symlink_to(place)
        give_to_server_user(target)
        with unchanged(*spaced.locations.values()):
            assert self.fetch(spaced, target=target).returncode == 0
            has_its_tables(recovered(make_server, spaced.server, target), moved)

    def test_a_failed_restore_leaves_links_that_were_there(self, spaced, make_place):
        other, moved = self.moved(spaced, make_place)
        target = other.make_directory("restored")
        (target / "pg_tblspc").mkdir()
        for oid, place in moved.items():
            (target / "pg_tblspc" / oid).symlink_to(place)
        give_to_server_user(target)
        store = other.directory / "store"
        other.run(["cp", "-a", spaced.store, store])
        spoil(max(store.glob("basebackups_005/*/tar_partitions/*")), flip(0.5))
        with unchanged(target, *moved.values(), *spaced.locations.values()):
            refusal(Watched(other, store)("backup-fetch", str(target), "LATEST", "-p", "1"), USAGE, "tar_partitions")

    def test_a_file_says_where_they_go(self, spaced, make_place, make_server):
        other, moved = self.moved(spaced, make_place)
        target, spec = other.directory / "restored", other.directory / "spec.json"
        spec.write_text(json.dumps({"tablespaces": list(moved), **{oid: {"loc": f"{place}/", "link": f"pg_tblspc/{oid}"} for oid, place in moved.items()}}))
        with unchanged(*spaced.locations.values()):
            assert self.fetch(spaced, "--restore-spec", str(spec), target=target).returncode == 0
            has_its_tables(recovered(make_server, spaced.server, target), moved)

    def test_blind_they_become_directories(self, spaced, make_place, make_server):
        target = make_place().directory / "restored"
        with unchanged(*spaced.locations.values()):
            fetched = self.fetch(spaced, "--blind-restore", target=target)
            assert fetched.returncode == 0
            assert not any((target / "pg_tblspc" / oid).is_symlink() for oid in spaced.locations)
            has_its_tables(recovered(make_server, spaced.server, target, fetched.stdout), {oid: f"pg_tblspc/{oid}" for oid in spaced.locations})

    def test_source_puts_them_where_they_were_unless_something_is_there(self, spaced, make_place, make_server):
        target = make_place().directory / "restored"
        first = next(iter(spaced.locations.values()))
        with unchanged(*spaced.locations.values()):
            refusal(
                self.fetch(spaced, "--restore-spec", "SOURCE", target=target), USAGE, f"the tablespace location {first} is not empty", "Nothing in this one"
            )
            assert not target.exists()
        aside = {location: location.with_name(f"{location.name} aside") for location in spaced.locations.values()}
        for location, place in aside.items():
            location.rename(place)
        try:
            assert self.fetch(spaced, "--restore-spec", "SOURCE", target=target).returncode == 0
            has_its_tables(recovered(make_server, spaced.server, target), spaced.locations)
        finally:
            for location, place in aside.items():
                shutil.rmtree(location, ignore_errors=True)
                place.rename(location)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, ["cannot be read", "No such file"]),
            ("{", ["is not JSON"]),
            ("[]", ["is not a JSON object"]),
            ('{"tablespaces": []}', ["leaves out tablespace", "FIRST", "SECOND"]),
            ('{"tablespaces": ["FIRST"], "FIRST": {"loc": "/x"}}', ["leaves out tablespace SECOND"]),
            ('{"tablespaces": ["1"]}', ["does not say where tablespace 1 goes", "FIRST"]),
            ('{"FIRST": {"loc": "relative"}}', ["does not say where tablespace FIRST goes", "/absolute/path/"]),
            ('{"FIRST": {"loc": 5}}', ["does not say where tablespace FIRST goes"]),
            ('{"tablespaces": 5}', ["does not list tablespaces"]),
            ('{"tablespaces": [["FIRST"]]}', ["does not list tablespaces"]),
            ('{"FIRST": {"loc": "DIRECTORY/x"}, "SECOND": {"loc": "DIRECTORY/x/"}}', ["DIRECTORY/x is the place of two", "FIRST and of tablespace SECOND"]),
            ('{"FIRST": {"loc": "DIRECTORY/target"}, "SECOND": {"loc": "DIRECTORY/x"}}', ["DIRECTORY/target is the place of two", "the data directory"]),
            ('{"FIRST": {"loc": "DIRECTORY"}, "SECOND": {"loc": "/x"}}', ["the tablespace location DIRECTORY is not empty"]),
        ],
    )
    def test_a_file_that_does_not_say_where_they_go_is_refused(self, spaced, text, words):
        directory = spaced.server.directory
        spec, names = directory / "spec.json", dict(zip(("FIRST", "SECOND"), spaced.locations, strict=True)) | {"DIRECTORY": str(directory)}

        def filled(text):
            for name, value in names.items():
                text = text.replace(name, value)
            return text

        spec.unlink(missing_ok=True)
        if text is not None:
            spec.write_text(filled(text))
        with unchanged(directory / "target", directory / "x", *spaced.locations.values()):
            refusal(self.fetch(spaced, "--restore-spec", str(spec)), USAGE, *map(filled, words))


class TestOfflineBackups:
    def test_a_running_and_a_crashed_server_are_refused(self, make_server):
        server = make_server(wal_segsize_mb=1)
        server.start()
        store = server.make_directory("store")
        wal_e = Watched(server, store)
        refusal(wal_e("backup-push", str(server.data), "--while-offline"), USAGE, "the server is running", str(server.data), "Leave --while-offline out")
        server.stop("immediate")
        refusal(wal_e("backup-push", str(server.data), "--while-offline"), USAGE, "was not shut down cleanly", "in production", "pg_ctl stop")
        assert not (store / "basebackups_005").exists()

    def test_a_clean_one_restores_and_starts_by_itself_and_a_second_push_finds_nothing_new(self, make_server):
        server = make_server(wal_segsize_mb=1)
        store = server.make_directory("store")
        server.start()
        server.psql("create table t as select generate_series(1, 1000) as n")
        server.stop()
        wal_e = Watched(server, store)
        with unchanged(server.data):
            assert wal_e("backup-push", str(server.data), "--while-offline").returncode == 0
            with unchanged(store):
                again = wal_e("backup-push", str(server.data), "--while-offline")
        assert (again.returncode, again.stdout) == (0, "")
        assert [record.message.partition(" base_")[0] for record in warnings(again)] == ["nothing new since"]
        target = server.directory / "target"
        assert wal_e("backup-fetch", str(target), "LATEST").returncode == 0
        copy = make_server(data=target)
        copy.start()
        assert copy.psql("select count(*) from t") == "1000"

    def test_one_that_is_started_meanwhile_is_noticed(self, make_server):
        server = make_server(wal_segsize_mb=1)
        store = server.make_directory("store")
        gate = Gate(server, 1)
        with Watched(server, store).started("backup-push", str(server.data), "--while-offline", env=gate.env) as push:
            gate.wait(push)
            server.start()
            gate.open()
            refusal(ended(push), LATER, "the server was started during an offline backup", str(server.data))
        assert not (store / "basebackups_005").exists()


class TestOddPlaces:
    def test_any_path_can_be_pushed_restored_and_recovered_with_the_printed_advice(self, make_server):
        server = make_server(wal_segsize_mb=1, data_name="base it's 100% base")
        store = server.make_directory("the base's 100% 'store' \\ $(id)")
        server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
        wal = server.make_directory("wal elsewhere")
        wal.rmdir()
        (server.data / "pg_wal").rename(wal)
        (server.data / "pg_wal").symlink_to(wal)
        server.start(archive_mode="on", archive_command="wal-e wal-push %p")
        server.psql("create table t as select generate_series(1, 1000) as n")
        wal_e = Watched(server, store)
        pushed_once = wal_e("backup-push", str(server.data), "--fast")
        assert pushed_once.returncode == 0
        assert [record.message for record in warnings(pushed_once)] == [f"pg_wal is a symbolic link to {wal}; it comes back as an empty directory"]
        server.psql("insert into t values (1001)")
        server.psql("select pg_switch_wal()")
        settled(server)

        target = server.directory / 'base/restored it\'s "100%" \\ $HOME'
        target.parent.mkdir()
        give_to_server_user(target.parent)
        advice = wal_e("backup-fetch", str(target), "LATEST").stdout
        assert sorted(os.listdir(target / "pg_wal")) == ["archive_status"]
        assert not (target / "pg_wal").is_symlink()
        server.run(["bash", "-eu"], input=advice, libpq=False)
        plain = target.rename(server.directory / "restored")  # pg_ctl itself knows no such names
        copy = make_server(data=plain)
        copy.start(archive_mode="off")
        copy.wait_for("select not pg_is_in_recovery()")
        assert copy.psql("select count(*) from t") == "1001"


@pytest.fixture
def keyring(make_server):
    """A function that gives a new GNUPGHOME of the server's user, with a key for each address; the agents are ended."""
    homes = []

    def make(server, *addresses):
        home = server.make_directory(f"gnupg-{len(homes)}")
        homes.append((server, home))
        for address in addresses:
            argv = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", address, "rsa2048", "encr", "1d"]
            server.run(argv, env={"GNUPGHOME": str(home)})
        server.run(["gpg-connect-agent", "/bye"], env={"GNUPGHOME": str(home)})
        return home

    yield make
    for server, home in homes:
        server.run(["gpgconf", "--kill", "all"], env={"GNUPGHOME": str(home)})


def is_encrypted(path):
    """Whether a file begins as an OpenPGP message for a public key does, and nowhere holds the magic of lzop."""
    content = path.read_bytes()
    return content[0] in (0x84, 0x85, 0xC1) and b"\x89LZO" not in content


class TestEncryption:
    def test_everything_pushed_is_encrypted_and_comes_back_without_the_setting(self, make_server, keyring):
        server = make_server(wal_segsize_mb=1)
        server.environ |= {"GNUPGHOME": str(keyring(server, "backup@example.org")), "WALE_GPG_KEY_ID": "backup@example.org"}
        store = archive_into_store(server)
        server.psql("create table t as select generate_series(1, 1000) as n")
        wal_e = Watched(server, store)
        assert wal_e("backup-push", str(server.data), "--fast").returncode == 0
        server.psql("insert into t values (1001)")
        server.psql("select pg_switch_wal()")
        settled(server)
        coded = [path for path in store.rglob("*.lzo") if path.is_file()]
        kinds = {"manifest" if path.name.startswith("manifest") else path.parent.name for path in coded}
        assert kinds == {"manifest", "tar_partitions", "wal_005"}
        assert [path for path in coded if not is_encrypted(path)] == []

        target = server.directory / "target"
        del server.environ["WALE_GPG_KEY_ID"]
        assert wal_e("backup-fetch", str(target), "LATEST").returncode == 0
        copy = recovered(make_server, server, target)
        assert copy.psql("select count(*) from t") == "1001"

    @pytest.mark.parametrize("verb", ["backup-push", "wal-push"])
    @pytest.mark.parametrize("trouble", ["unknown key", "no gpg"])
    def test_what_cannot_be_encrypted_is_not_stored(self, spoiled, cluster, pushed, keyring, verb, trouble):
        env = {"GNUPGHOME": str(keyring(spoiled.server)), "WALE_GPG_KEY_ID": "nobody@example.org"}
        if trouble == "no gpg":
            place = spoiled.server.make_directory("only-lzop")
            (place / "lzop").symlink_to(shutil.which("lzop"))
            env["PATH"] = str(place)
        name, content = real_segment(pushed)
        (spoiled.store / f"wal_005/{name}.lzo").unlink()
        words = ["wal-push", str(wal_file(spoiled.server, name, content))] if verb == "wal-push" else ["backup-push", str(cluster), "--while-offline"]
        said = ["gpg cannot encrypt for this key", "WALE_GPG_KEY_ID"] if trouble == "unknown key" else ["gpg cannot be started", "apt-get install gnupg"]
        with unchanged(spoiled.store):
            refusal(Watched(spoiled.server, spoiled.store)(*words, env=env), USAGE, *said)

    def test_what_is_encrypted_for_another_key_is_named(self, spoiled, cluster, keyring):
        mine, other = keyring(spoiled.server, "backup@example.org"), keyring(spoiled.server, "other@example.org")
        wal_e = Watched(spoiled.server, spoiled.store)
        path, target = wal_file(spoiled.server, "00000002.history", b"1\t0/3000000\tpromoted\n"), spoiled.server.directory / "target"
        env = {"GNUPGHOME": str(mine), "WALE_GPG_KEY_ID": "backup@example.org"}
        assert wal_e("backup-push", str(cluster), "--while-offline", env=env).returncode == 0
        assert wal_e("wal-push", str(path), env=env).returncode == 0
        with unchanged(spoiled.store, target):
            stranger = {"GNUPGHOME": str(other)}
            said = "is encrypted for another key"
            refusal(wal_e("backup-fetch", str(target), "LATEST", env=stranger), USAGE, f"manifest.jsonl.lzo {said}", "secret key")
            refusal(wal_e("wal-fetch", path.name, str(target), env=stranger), 200, f"wal_005/{path.name}.lzo {said}")
            refusal(wal_e("wal-push", str(path), env=stranger), USAGE, f"wal_005/{path.name}.lzo {said}")
        for kind in ("flipped in the middle", "cut by one byte", "longer", "truncated"):
            stored = spoiled.store / f"wal_005/{path.name}.lzo"
            whole = stored.read_bytes()
            spoil(stored, DAMAGE[kind])
            refusal(wal_e("wal-fetch", path.name, str(target), env=env), 200, f"wal_005/{path.name}.lzo")
            stored.write_bytes(whole)
        assert wal_e("wal-fetch", path.name, str(target), env=env).returncode == 0
