"""Bad inputs, damage, signals and neighbours, for restore, window, backup-verify and drill: refused in words, with nothing half-written and nobody left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_archive import (
    Gate,
    Pushed,
    Watched,
    _identity,
    archive_into_store,
    backups,
    copied,
    fake_lzop,
    records,
    refusal,
    script,
    settled,
    stored_wal,
    unchanged,
)
from fix_postgres import bindir, give_to_server_user, wait_until

from wal_e.errors import LockHeld
from wal_e.operators.restore_target import TablespaceChoice, Target

LATER = 1
NEVER = 2
PLANNING, FETCHING, RECOVERING = 1, 4, 6
"""Calls of lzop in a restore: for the last commit, for the manifest twice, for two partitions, and for the server's WAL."""
DRILLED = 5
"""The first call in a drill that is the server's."""
SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def origin(make_shared_server):
    """A stopped server with one backup, two segments of WAL behind it, and a configuration with which a copy can be started here."""
    server = make_shared_server()
    server.configure(port=str(server.port), unix_socket_directories=str(server.directory), listen_addresses="")
    store = archive_into_store(server)
    server.psql("create table t as select generate_series(1, 1000) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    for _ in range(2):
        server.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()")
    settled(server)
    server.stop()
    return Pushed(server, store, backups(server))


@pytest.fixture
def spoilt(origin, make_place):
    """A copy of the store, to be spoiled by the test, beside a place to restore into."""
    return copied(origin, make_place())


def watched(pushed):
    return Watched(pushed.server, pushed.store)


def is_whole(directory):
    """Whether pg_verifybackup finds nothing wrong, but for the settings of the recovery."""
    argv = [bindir() / "pg_verifybackup", "-n", "-i", "postgresql.auto.conf", "-i", "recovery.signal", directory]
    return "successfully verified" in subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def server_processes(directory: Path) -> list[int]:
    """Processes of servers that work below a directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((place / "cwd").readlink()).startswith(str(directory)) and b"postgres" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


class TestTheCommandLine:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["restore", "", "--delta"], "the target directory has no name"),
            (["backup-fetch", "", "LATEST"], "the target directory has no name"),
            (["restore", "target", "--target-time", ""], "'' is not a point in time"),
            (["restore", "target", "--target-lsn", ""], "'' is not an LSN"),
            (["restore", "target", "--target-xid", ""], "'' is not the number of a transaction"),
            (["restore", "target", "--target-xid", "9" * 5000], "is not the number of a transaction"),
            (["restore", "target", "--target-name", ""], "cannot be the name of a restore point"),
            (["restore", "target", "--target-timeline", "9" * 5000], "is not a timeline"),
            (["restore", "target", "--target-timeline", "9"], "there is no timeline 9"),
            (["restore", "target", "--tablespace", "1=/a", "--tablespace", "1=/b"], "names tablespace 1 twice"),
            (["restore", "target", "--unarchived-wal", "keep"], "is for --delta"),
            (["restore", "target", "--delta", "--unarchived-wal", "keep", "--use-partial"], "exclude each other"),
            (["restore", "target", "--tablespace", "4711=/elsewhere"], "the backup has no tablespace 4711"),
            (["drill", "--target-time", ""], "'' is not a point in time"),
            (["drill", "--directory", "/nowhere"], "there is no directory '/nowhere'"),
            (["drill", "--directory", ""], "there is no directory ''"),
            (["drill", "--sql", "absent.sql"], "absent.sql cannot be read"),
        ],
        ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
    )
    def test_what_is_empty_unknown_or_twice_is_refused_and_never_left_out(self, origin, words, said):
        with unchanged(origin.store):
            refusal(watched(origin)(*words), NEVER, said)
        assert not (origin.server.directory / "target").exists()

    def test_a_directory_that_cannot_be_written_to_is_refused_by_the_plan_already(self, spoilt):
        spoilt.server.directory.chmod(0o500)
        target = spoilt.server.data
        result = subprocess.run(**as_user(spoilt, "restore", str(target), "--dry-run"))
        spoilt.server.directory.chmod(0o700)
        refusal(result, LATER, "permission denied", str(spoilt.server.directory))

    def test_a_drill_may_be_given_a_directory_relative_to_the_current_one(self, spoilt):
        place = spoilt.server.make_directory("scratch")
        result = watched(spoilt)("drill", "--bindir", str(bindir()), "--directory", "scratch", "--target-immediate")
        assert result.returncode == 0, result.stderr
        assert list(place.iterdir()) == []


def as_user(pushed, *words):
    """What to give to ``subprocess.run`` for a command that gets no directory of its own."""
    environ = {**pushed.server.environ, "WALE_FILE_PREFIX": f"file://localhost{pushed.store}", "WALE_LOG_DESTINATION": "stderr"}
    return {"args": [script(), *words], "env": environ, "cwd": "/", "capture_output": True, "text": True, "timeout": 60, **_identity()}


class TestDamage:
    @pytest.mark.parametrize("verb", ["restore", pytest.param("restore --delta", marks=pytest.mark.slow), pytest.param("drill", marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        ("which", "how"),
        [("_backup_stop_sentinel.json", "cut"), ("/manifest.jsonl.lzo", "flipped"), ("/tar_partitions/part_00000001.tar.lzo", "gone")],
        ids=["sentinel", "manifest", "last partition"],
    )
    def test_damage_is_named_and_nothing_comes_of_it_that_could_be_started(self, spoilt, verb, which, how):
        target = spoilt.server.data
        if verb == "restore --delta":
            assert watched(spoilt)("restore", str(target)).returncode == 0
        spoil(spoilt.store / f"basebackups_005/{spoilt.names[0]}{which}", how)
        words = ["drill", "--bindir", str(bindir())] if verb == "drill" else [*verb.split(), str(target)]
        result = watched(spoilt)(*words, "--backup", spoilt.names[0])
        assert result.returncode == NEVER
        [error] = [record for record in records(result.stderr) if record.level == "ERROR"]
        assert f"{spoilt.names[0]}{which}" in error.text
        if verb == "restore":
            assert not target.exists()
        elif verb == "restore --delta":
            is_as_before = which != "/tar_partitions/part_00000001.tar.lzo"
            assert (target / "global/pg_control").exists() == is_as_before  # what failed halfway cannot be started
            assert not is_as_before or is_whole(target)

    @pytest.mark.parametrize("how", ["damaged", "lost"])
    def test_a_newer_timeline_whose_history_cannot_be_read_is_not_passed_over_in_silence(self, spoilt, how):
        wal = spoilt.store / "wal_005"
        if how == "damaged":
            (wal / "00000002.history.lzo").write_bytes(b"\x89LZO\x00\r\n\x1a\nthe rest is gone")
        else:
            newest = wal / f"{stored_wal(spoilt.store)[-1]}.lzo"
            newest.rename(wal / f"00000002{newest.name[8:]}")
        give_to_server_user(wal)
        run = watched(spoilt)
        refusal(run("restore", str(spoilt.server.data)), NEVER, "00000002.history", "--target-timeline 1")
        window = run("window")
        assert window.stdout.startswith("timeline 1: from ")
        refusal(window, NEVER, "00000002.history", stdout=window.stdout)
        assert run("restore", str(spoilt.server.data), "--target-timeline", "1", "--dry-run").returncode == 0

    def test_a_full_disk_is_no_proof_against_a_backup(self, spoilt):
        """The server says so, in place of one on a disk that is full."""
        programs = spoilt.server.make_directory("programs")
        postgres = programs / "postgres"
        postgres.write_text(
            f'#!/bin/sh\ncase "$1" in -V|--version) exec {bindir()}/postgres "$@";; esac\n'
            'echo "2026-01-01 00:00:00 GMT [1] FATAL:  could not write to file: No space left on device" >&2\nexit 1\n'
        )
        postgres.chmod(0o755)
        give_to_server_user(programs)
        error = refusal(watched(spoilt)("drill", "--bindir", str(programs)), NEVER, "No space left on device")
        assert error.error == "DiskFull"
        assert not (spoilt.store / f"basebackups_005/{spoilt.names[0]}/drill.json").exists()


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :])


def dies(process, signum):
    """Send the signal; the process must die of it, with nothing but log records on stderr."""
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signum, (process.returncode, stderr)
    assert [record for record in records(stderr) if record.level == "ERROR"] == []


class TestSignals:
    @pytest.mark.parametrize("signum", SIGNALS)
    @pytest.mark.parametrize(
        ("words", "call"),
        [
            (("restore",), PLANNING),
            (("restore",), FETCHING + 1),
            pytest.param(("restore",), FETCHING, marks=pytest.mark.slow),
            pytest.param(("window",), 1, marks=pytest.mark.slow),
            (("backup-verify", "LATEST", "-p", "1"), 3),
            pytest.param(("backup-verify", "LATEST", "-p", "1"), 4, marks=pytest.mark.slow),
            pytest.param(("drill",), 3, marks=pytest.mark.slow),
        ],
        ids=["plan", "last partition", "first partition", "window", "verify", "verify's WAL", "drill's fetch"],
    )
    def test_while_something_is_read_nothing_is_left(self, spoilt, signum, words, call):
        gate, target = Gate(spoilt.server, call), spoilt.server.data
        more = {"restore": [str(target), "-p", "1"], "drill": ["--bindir", str(bindir())]}.get(words[0], [])
        with unchanged(spoilt.store, target), watched(spoilt).started(*words, *more, env=gate.env) as process:
            gate.wait(process)
            dies(process, signum)

    @pytest.mark.parametrize("signum", SIGNALS)
    def test_while_a_delta_fetches_what_is_there_stays_and_the_next_one_goes_on(self, spoilt, signum):
        target, run = spoilt.server.data, watched(spoilt)
        assert run("restore", str(target)).returncode == 0
        victim = max((path for path in (target / "base").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        victim.unlink()
        gate = Gate(spoilt.server, 3)
        with unchanged(spoilt.store), run.started("restore", str(target), "--delta", "-p", "1", env=gate.env) as process:
            gate.wait(process)
            dies(process, signum)
        assert not (target / "global/pg_control").exists()
        assert run("restore", str(target), "--delta").returncode == 0
        assert is_whole(target)

    @pytest.mark.parametrize("signum", SIGNALS)
    def test_while_the_server_recovers_it_is_stopped_and_the_restored_directory_stays(self, spoilt, signum):
        target = spoilt.server.data
        stop = Gate(spoilt.server, RECOVERING)
        with watched(spoilt).started("restore", str(target), "--start", "--bindir", str(bindir()), env=stop.env) as process:
            stop.wait(process)
            dies(process, signum)
        assert server_processes(target) == []
        assert (target / "recovery.signal").exists()

    @pytest.mark.parametrize("signum", SIGNALS)
    def test_while_a_drill_recovers_neither_server_nor_directory_is_left(self, spoilt, signum):
        scratch, stop = spoilt.server.make_directory("scratch"), Gate(spoilt.server, DRILLED)
        with (
            unchanged(spoilt.store, scratch),
            watched(spoilt).started("drill", "--bindir", str(bindir()), "--directory", str(scratch), env=stop.env) as process,
        ):
            stop.wait(process)
            assert server_processes(scratch)
            dies(process, signum)
            wait_until(lambda: not server_processes(scratch), "the end of the server")


class TestTwoAtOnce:
    def test_a_restore_that_looked_before_another_one_began_is_refused_and_takes_nothing_away(self, spoilt):
        """It is held between its look at the target and its first write."""
        target, gate = spoilt.server.data, Gate(spoilt.server, FETCHING - 1)
        with watched(spoilt).started("restore", str(target), "-p", "1", env=gate.env) as late:
            gate.wait(late)
            assert watched(spoilt)("restore", str(target)).returncode == 0
            gate.open()
            _, stderr = late.communicate(timeout=60)
        assert (late.returncode, "is not empty" in stderr) == (NEVER, True), stderr
        assert is_whole(target)

    def test_two_restores_do_not_fill_one_directory(self, tmp_path):
        one, other = (Target(str(tmp_path / "target"), {}, TablespaceChoice(True, None)) for _ in range(2))
        with one.filling():
            with pytest.raises(LockHeld, match="another restore works on"), other.filling():
                pass
            (tmp_path / "target/file").touch()
        assert (tmp_path / "target/file").exists()

    @pytest.mark.slow
    def test_two_drills_and_two_verifications_do_not_hinder_each_other(self, spoilt):
        commands = [["drill", "--bindir", str(bindir())], ["backup-verify", "LATEST"]] * 2
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda words: watched(spoilt)(*words), commands))
        assert [result.returncode for result in results] == [0] * 4, [result.stderr for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("words", ["restore {target}", "window", "backup-verify LATEST --json", "drill --target-immediate --bindir {bindir}"])
def test_standard_descriptors_do_not_change_a_status(spoilt, words, redirection):
    line = f"{script()} {words.format(target=spoilt.server.data, bindir=bindir())} {redirection}"
    environ = {"WALE_FILE_PREFIX": f"file://localhost{spoilt.store}"}
    assert spoilt.server.run(["bash", "-c", line], env=environ, check=False).returncode == 0
    assert not words.startswith("restore") or is_whole(spoilt.server.data)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["os.kill(os.getpid(), 9)", "sys.exit(3)"], ids=["killed", "failing"])
@pytest.mark.parametrize("words", [["restore", "target"], ["window"], ["backup-verify", "LATEST"], ["drill"]], ids=lambda words: words[0])
def test_a_codec_that_fails_each_time_is_told_and_leaves_nothing(spoilt, words, body):
    env = {**fake_lzop(spoilt.server, body), "WALE_FETCH_DEADLINE": "1", "WALE_PUSH_DEADLINE": "1"}
    more = ["--bindir", str(bindir())] if words == ["drill"] else []
    with unchanged(spoilt.store):
        result = watched(spoilt)(*words, *more, env=env)
    assert result.returncode in (LATER, NEVER)
    [error] = [record for record in records(result.stderr) if record.level == "ERROR"]
    assert re.search(r"lzop", error.text)
    assert not (spoilt.server.directory / "target").exists()
    assert os.listdir(spoilt.server.directory)
