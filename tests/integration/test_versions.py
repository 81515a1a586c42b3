"""The whole way on every major version from 10 to 18: push under load, archive, restore to each kind of target, promote, push again, restore over the fork.

A cell is a major version, a segment size of 1, 16 or 64 MiB, and page checksums on or off; 10 knows only 16 MiB.
``script/test`` runs one cell of each major: the end of the WAL, what is verified beside it, and one more target, another one from
major to major. ``script/test --slow`` runs all 50 cells, each with all targets. Restored tables are compared, all
of them, with what they held at that point.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import pytest
from fix_history import RESTORE_POINT, History, Kind, burdened, chosen, contents, forget, live, paused, promoted, shown
from fix_postgres import client_programs, give_to_server_user

MAJORS = range(10, 19)
SEGMENT_SIZES = (1, 16, 64)
ALWAYS = [
    Kind(10, 16, checksums=False),
    Kind(11, 1, checksums=True),
    Kind(12, 64, checksums=False),
    Kind(13, 16, checksums=True),
    Kind(14, 1, checksums=False),
    Kind(15, 16, checksums=True),
    Kind(16, 16, checksums=False),
    Kind(17, 1, checksums=True),
    Kind(18, 16, checksums=False),
]
OTHERS = [
    kind
    for kind in (Kind(major, size, checksums=checksums) for major in MAJORS for size in SEGMENT_SIZES for checksums in (False, True))
    if kind not in ALWAYS and (kind.major > 10 or kind.wal_segsize_mb == 16)
]


class Target(NamedTuple):
    """What is asked of restore, the number of the last row that must come of it, and of the backup that it must choose; ``major`` tries it always."""

    name: str
    options: Callable[[History], tuple[str, ...]]
    last: int
    backup: int
    action: str
    major: int


TARGETS = [
    Target("time", lambda past: ("--target-time", shown(past.changes[3].time)), 3, 0, "promote", 13),
    Target("time exclusive", lambda past: ("--target-time", shown(past.changes[3].time), "--exclusive"), 2, 0, "pause", 10),
    Target("time on the old timeline", lambda past: ("--target-time", shown(past.changes[5].time), "--target-timeline", "1"), 5, 1, "promote", 17),
    Target("time on the new timeline", lambda past: ("--target-time", shown(past.changes[20].time)), 20, 0, "pause", 12),
    Target("lsn", lambda past: ("--target-lsn", last_commits(past)[1]["lsn"], "--target-timeline", "1"), 6, 1, "promote", 16),
    Target("lsn exclusive", lambda past: ("--target-lsn", last_commits(past)[1]["lsn"], "--target-timeline", "1", "--exclusive"), 5, 1, "pause", 14),
    Target("xid", lambda past: ("--target-xid", past.changes[21].xid), 21, 2, "promote", 15),
    Target("xid exclusive", lambda past: ("--target-xid", past.changes[3].xid, "--exclusive"), 2, 0, "pause", 18),
    Target("xid over the fork", lambda past: ("--target-xid", past.changes[20].xid, "--backup", past.names[0]), 20, 0, "promote", 11),
    Target("the old timeline's end", lambda past: ("--target-timeline", "1"), 6, 1, "", 0),
]


def named(kind):
    return f"{kind.major}-{kind.wal_segsize_mb}MB-{'checksums' if kind.checksums else 'none'}"


def cells(majors=MAJORS):
    """Each kind of cluster as a parameter of the fixture ``past``; slow but for one of each of these major versions."""
    always = [pytest.param(kind, id=named(kind), marks=() if kind.major in majors else pytest.mark.slow) for kind in ALWAYS]
    return pytest.mark.parametrize("past", always + [pytest.param(kind, id=named(kind), marks=pytest.mark.slow) for kind in OTHERS], indirect=True)


@pytest.fixture(scope="module")
def past(request, make_shared_server):
    """The history of a cell; its disk is freed when the next cell's turn comes."""
    history = live(make_shared_server, request.param, burdened)
    yield history
    forget(history)


@pytest.fixture
def place(make_place, past):
    """Where to restore: a server without a data directory."""
    place = make_place(past.kind.major)
    place.environ |= {name: value for name, value in past.server.environ.items() if name.startswith("WALE_")}
    return place


def restore(place, past, *options):
    """Restore, the tablespace to a place of its own, and return what restore printed; the result must be what the manifest says."""
    said = place.wal_e("restore", str(place.data), "--tablespace", f"{past.tablespace}={place.directory}/space", *options).stdout
    if "--start" not in options:
        verify(place, past.kind.major)
    return said


def verify(place, major):
    """See that pg_verifybackup accepts a restored directory, which is not started yet."""
    manifest = place.data / "backup_manifest"
    if major < 13:
        assert not manifest.exists()
        return
    assert json.loads(manifest.read_text())["PostgreSQL-Backup-Manifest-Version"] == (2 if major >= 17 else 1)
    argv = [client_programs() / "pg_verifybackup", "-n", place.data]
    if major == 17:  # no tool that there is here reads its pg_control, as it does for version 2
        argv += ["-m", as_version_1(place, manifest.read_bytes())]
    assert "successfully verified" in place.run(argv).stdout


def as_version_1(place, manifest):
    """Write a manifest once more, without what makes it one of version 2."""
    lines = manifest.splitlines(keepends=True)
    assert lines[-1] == checksum_line(lines[:-1])
    assert lines[1].startswith(b'"System-Identifier": ')
    lines = [lines[0].replace(b": 2,", b": 1,"), *lines[2:-1]]
    path = place.directory / "manifest"
    path.write_bytes(b"".join(lines) + checksum_line(lines))
    give_to_server_user(path)
    return path


def checksum_line(lines):
    return b'"Manifest-Checksum": "' + hashlib.sha256(b"".join(lines)).hexdigest().encode() + b'"}\n'


def last_commits(past):
    """The last commit on each timeline, as window tells it."""
    return {window["timeline"]: window["last_commit"] for window in json.loads(past.server.wal_e("window", "--json").stdout)["windows"]}


def written(place, major):
    """Where restore wrote how to recover, and that text; there is one signal for it, and no other."""
    signals = {name for name in ("recovery.conf", "recovery.signal", "standby.signal") if (place.data / name).exists()}
    old = major < 12
    assert signals == {"recovery.conf" if old else "recovery.signal"}
    return (place.data / ("recovery.conf" if old else "postgresql.auto.conf")).read_text()


def check_inside(place, major):
    """Compare every index with its table, and look at every page of tables, as far as the version can."""
    heapallindexed = ", true" if major >= 11 else ""
    of_indexes = f"""select count(bt_index_check(indexrelid{heapallindexed})::text) from pg_index
        join pg_class c on c.oid = indexrelid join pg_am a on a.oid = relam where amname = 'btree' and indisvalid"""
    of_tables = "select c.oid::regclass, v.* from pg_class c, lateral verify_heapam(c.oid) v where relkind in ('r', 'm', 't')"
    for database in ("postgres", "other"):
        place.psql("create extension amcheck", database)
        assert int(place.psql(of_indexes, database)) > 100
        if major >= 14:
            assert place.psql(of_tables, database) == ""
    if major >= 12:
        assert place.psql("select coalesce(sum(checksum_failures), 0) from pg_stat_database") == "0"


@cells()
def test_the_end_of_the_wal(place, past):
    """And what is the same for all targets: manifest, files of recovery, what comes after the start."""
    assert past.forked == past.changes[4].contents  # where timeline 2 began
    said = restore(place, past)
    assert chosen(said) == past.names[2]
    settings = written(place, past.kind.major)
    assert settings.count("restore_command") == 1
    assert "recovery_target_xid" not in settings  # of the restore by which the server came to timeline 2
    place.start(archive_mode="off")
    promoted(place)
    assert contents(place) == past.changes[21].contents
    assert place.psql("show data_checksums") == ("on" if past.kind.checksums else "off")
    assert place.psql("show wal_segment_size") == f"{past.kind.wal_segsize_mb}MB"
    assert place.psql("select count(*) from scratch") == "0"  # unlogged
    assert place.psql("select nextval('ids') > max(id) from loaded") == "t"
    if past.kind.major >= 17:
        assert f'"System-Identifier": {place.psql("select system_identifier from pg_control_system()")},' in (place.data / "backup_manifest").read_text()
    check_inside(place, past.kind.major)


@cells()
def test_the_window_ends_with_the_last_commit(past):
    found = {timeline: (last["kind"], str(last["xid"]), datetime.fromisoformat(last["time"])) for timeline, last in last_commits(past).items()}
    six, twenty_one = past.changes[6], past.changes[21]  # with the times that pg_xact_commit_timestamp() said
    assert found == {1: ("commit", six.xid, six.time), 2: ("commit", twenty_one.xid, twenty_one.time)}


@cells()
def test_the_backup_that_was_pushed_amid_the_load_verifies(past):
    [verdict] = json.loads(past.server.wal_e("backup-verify", past.names[0], "--json").stdout)
    assert (verdict["ok"], bool(verdict["pages"])) == (True, past.kind.checksums)
    pages = json.loads(past.server.wal_e("backup-list", "--json").stdout)[0]["page_checksums"]  # as they were looked at amid the load
    assert (pages is not None and pages["pages"] > 1000 and pages["damaged"] == []) if past.kind.checksums else pages is None


@cells([11, 14])
def test_immediate_comes_to_the_end_of_the_backup_amid_the_load(place, past):
    said = restore(place, past, "--target-immediate", "--backup", past.names[0])
    place.start(archive_mode="off")
    paused(place)
    assert chosen(said) == past.names[0]
    assert place.psql("select string_agg(n::text, ' ') from t") == "1"
    before, after = past.rounds
    assert before + 5 < after
    assert before <= int(place.psql("select max(id) from loaded")) <= after + 1
    assert place.psql("select count(*) from loaded full join booked using (id) where loaded.amount is distinct from booked.amount") == "0"


@cells([10, 18])
def test_a_restore_point_is_found_and_the_server_shuts_down_there(place, past):
    place.port, place.socket_dir = past.port, past.sockets
    said = restore(place, past, "--target-name", RESTORE_POINT, "--target-action", "shutdown", "--start")
    assert re.search(r"^state +the server was shut down at the target;", said, re.M)
    assert not place.is_running()
    with (place.data / ("recovery.conf" if past.kind.major < 12 else "postgresql.auto.conf")).open("a") as stream:
        stream.write("recovery_target_action = 'promote'\n")
    place.start(archive_mode="off")
    promoted(place)
    assert contents(place) == past.changes[2].contents


@pytest.mark.parametrize("past", [pytest.param(kind, id=named(kind)) for kind in ALWAYS], indirect=True)
def test_the_target_that_is_always_tried_with_its_major_is_reached(place, past):
    [target] = [target for target in TARGETS if target.major == past.kind.major]
    check_target(place, past, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [pytest.param(target, id=target.name) for target in TARGETS])
@cells()
def test_a_target_is_reached_and_not_passed(place, past, target):
    check_target(place, past, target)


def check_target(place, past, target):
    action = ("--target-action", target.action) if target.action else ()
    said = restore(place, past, *target.options(past), *action)
    assert chosen(said) == past.names[target.backup]
    place.start(archive_mode="off")
    (paused if target.action == "pause" else promoted)(place)
    assert contents(place) == past.changes[target.last].contents
