"""check with real servers and real stores: all is well, and each thing that is not, by name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import fix_s3
import pytest
from fault_proxy import FaultProxy
from fault_rules import Rule, Stall
from fix_archive import Watched, archive_into_store, fake_lzop, records, refusal, script, settled, stored_wal, unchanged
from fix_network import NETWORKS
from fix_postgres import wait_until
from servers import versity

STORE = ["prefix", "store", "identity", "write", "read", "list", "create", "clock", "parts", "delete"]


def results(result) -> dict[str, dict[str, str]]:
    """The document of a run, by name; each has exactly the promised keys."""
    document = json.loads(result.stdout)
    assert all(set(one) == {"name", "state", "seen", "hint"} for one in document)
    assert all(one["hint"] for one in document if one["state"] == "fail")
    found = {one["name"]: one for one in document}
    assert len(found) == len(document)
    return found


def states(result, *of: str) -> dict[str, str]:
    """States by name: those that are not ok, or those of the named checks."""
    return {name: one["state"] for name, one in results(result).items() if (name in of if of else one["state"] not in ("ok", "skip"))}


def probes(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if "probe" in path.name]


@pytest.fixture(scope="module")
def healthy(make_shared_server):
    """A server that archives into its store, where a backup is; tests put back what they change."""
    server = make_shared_server()
    store = archive_into_store(server, archive_timeout="1h", autovacuum="off")  # nothing is switched but by the tests
    server.psql("create table t as select generate_series(1, 1000) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    return server, store, Watched(server)


@contextlib.contextmanager
def changed(server, **settings):
    """Other settings of the server, without a restart, until the block ends."""
    for name, value in settings.items():
        server.psql(f"alter system set {name} = '{value}'")
    server.reload()
    for name, value in settings.items():
        server.wait_for(f"select current_setting('{name}') = '{value}'")
    try:
        yield
    finally:
        before = dict.fromkeys(settings)
        for name in settings:
            before[name] = server.psql(f"select current_setting('{name}')")
            server.psql(f"alter system reset {name}")
        server.reload()
        for name, value in before.items():
            server.wait_for(f"select current_setting('{name}') <> '{value}'")


def test_where_all_is_well_a_segment_arrives_and_nothing_is_left(healthy):
    server, store, wal_e = healthy
    before = {path for path in store.rglob("*") if path.is_file()}
    result = wal_e("check", "--json", str(server.data))
    assert (result.returncode, result.stderr) == (0, ""), result
    found = results(result)
    assert {one["state"] for name, one in found.items() if name not in ("gpg", "parts", "all WAL", "free space")} == {"ok"}, found
    segment = re.match(r"([0-9A-F]{24}) arrived in the store after", found["switch"]["seen"])[1]
    assert {path.name for path in store.rglob("*") if path.is_file()} - {path.name for path in before} == {f"{segment}.lzo"}
    assert server.psql("select system_identifier from pg_control_system()") in found["identity"]["seen"]

    table = wal_e("check", "--no-switch", "--thorough", str(server.data))
    assert table.returncode == 0
    lines = table.stdout.splitlines()
    names = [line[6:25].strip() for line in lines[:-1] if not line.startswith(" ")]
    assert names == list(found)
    assert any(line.startswith("skip  switch") and "--no-switch" in line for line in lines)
    assert any(re.match(r"ok    parts +16.0 MiB went up", line) for line in lines)
    assert any(re.match(r"ok    all WAL +1 backup can be recovered", line) for line in lines)
    assert lines[-1].endswith(f"0 failed, {sum(line.startswith('skip') for line in lines)} left out")
    assert probes(store) == []


def test_an_idle_server_has_something_to_switch(healthy):
    server, store, wal_e = healthy
    server.psql("select pg_switch_wal()")
    settled(server)
    last = stored_wal(store)[-1]
    assert results(wal_e("check", "--json", str(server.data)))["switch"]["seen"][:24] > last


def test_without_a_data_directory_the_server_is_left_alone(healthy):
    _, store, wal_e = healthy
    with unchanged(store):
        found = results(wal_e("check", "--json"))
    assert list(found) == ["version", "settings", "lzop", "gpg", "numpy", "codec", "data directory", *STORE, "last backup", "its WAL", "all WAL"]
    assert found["data directory"]["state"] == "skip"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"archive_command": "cp %p /nowhere/%f"}, ("does not call wal-e wal-push", "cp %p")),
        ({"archive_command": "AWS_SECRET_ACCESS_KEY=topsecret wal-e wal-push"}, ("does not say which file",)),
    ],
)
def test_an_archive_command_that_is_not_ours_or_cannot_work_is_told_and_nothing_is_switched(healthy, settings, words):
    server, _, wal_e = healthy
    with changed(server, **settings):
        before = server.psql("select pg_walfile_name(pg_current_wal_insert_lsn())")
        result = wal_e("check", "--json", str(server.data))
        assert server.psql("select pg_walfile_name(pg_current_wal_insert_lsn())") == before
    found = results(result)
    assert (found["archive_command"]["state"], found["switch"]["state"]) == ("fail", "skip")
    assert found["switch"]["seen"] == "archive_command failed"
    for word in words:
        assert word in found["archive_command"]["seen"]
    assert "topsecret" not in result.stdout + result.stderr
    assert refusal(result, 2, "archive_command", stdout=result.stdout).error == "ServerRefused"


def test_a_script_that_calls_us_is_ours(healthy):
    server, _, wal_e = healthy
    place = server.directory / "archive.sh"
    place.write_text('#!/bin/sh\nexec wal-e wal-push "$1"\n')
    place.chmod(0o755)
    with changed(server, archive_command=f"{place} %p"):
        found = results(wal_e("check", "--json", str(server.data)))
    assert found["archive_command"]["state"] == "ok"
    assert str(place) in found["archive_command"]["seen"]
    assert "arrived" in found["switch"]["seen"]


def test_a_segment_that_does_not_arrive_is_told_in_time_and_may_pass(healthy):
    server, _, wal_e = healthy
    with changed(server, archive_command="test -f nothing && wal-e wal-push %p"):
        result = wal_e("check", "--json", "--timeout", "1", str(server.data))
        found = results(result)
        assert found["switch"]["state"] == "fail"
        assert "did not arrive in the store within 1 s" in found["switch"]["seen"]
        assert "1 file waited" in found["switch"]["seen"]
        assert "Does archive_command store at file://" in found["switch"]["hint"]
        server.wait_for("select failed_count > 0 from pg_stat_archiver")
        again = wal_e("check", "--json", "--no-switch", str(server.data))
    assert results(again)["archiver"]["state"] == "fail"
    assert "last attempt to archive failed" in results(again)["archiver"]["seen"]
    refusal(again, 1, "archiver", stdout=again.stdout)
    assert refusal(result, 1, "switch", stdout=result.stdout)
    settled(server)
    server.wait_for("select last_archived_time > last_failed_time from pg_stat_archiver")  # the archiver says so after it has marked the file
    result = wal_e("check", "--json", "--no-switch", str(server.data))
    assert result.returncode == 0, "a failure that is over is none"


def test_what_only_deserves_a_look_is_a_warning_and_no_failure(healthy):
    server, _, wal_e = healthy
    with changed(server, archive_timeout="0", full_page_writes="off"):
        result = wal_e("check", "--json", "--no-switch", "--max-backup-age", "0", str(server.data), env={"WALE_S3_PREFX": "s3://typo"})
    assert result.returncode == 0
    found = results(result)
    warned = {name for name, state in states(result).items() if state == "warn"} - {"free space"}
    assert warned == {"settings", "full_page_writes", "archive_timeout", "last backup"}
    assert "WALE_S3_PREFX" in found["settings"]["seen"]


def test_a_user_without_rights_is_told_which(healthy):
    server, _, wal_e = healthy
    server.psql("create role watcher login; grant pg_monitor to watcher")
    result = wal_e("check", "--json", str(server.data), env={"PGUSER": "watcher"})
    found = results(result)
    assert states(result, "backup functions", "switch") == {"backup functions": "fail", "switch": "warn"}
    assert 'TO "watcher"' in found["backup functions"]["hint"]
    assert 'pg_switch_wal() TO "watcher"' in found["switch"]["hint"]


def test_a_prefix_of_another_cluster_is_refused_and_nothing_is_switched(healthy, make_server):
    _, store, _ = healthy
    other = make_server(wal_segsize_mb=16)
    other.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}"}
    other.start(archive_mode="on", archive_command="wal-e wal-push %p")
    with unchanged(store):
        result = Watched(other, store)("check", "--json", "--timeout", "5", str(other.data))
    assert states(result, "identity", "switch", "last backup") == {"identity": "fail", "switch": "skip", "last backup": "warn"}
    assert refusal(result, 2, "another cluster", stdout=result.stdout).error == "WrongCluster"


def test_a_server_that_is_down_and_one_that_does_not_archive(make_server, make_place):
    server = make_server(wal_segsize_mb=1)
    store = server.make_directory("store")
    wal_e = Watched(server, store)
    result = wal_e("check", "--json", str(server.data), env={"PGHOST": "", "PGPORT": ""})
    found = results(result)
    assert (found["server"]["state"], found["switch"]["state"], found["free space"]["state"]) == ("fail", "skip", found["free space"]["state"])
    assert "no PostgreSQL server runs" in found["server"]["seen"]
    assert found["switch"]["seen"] == "server failed"
    assert found["last backup"]["state"] == "warn"
    refusal(result, 1, "server", stdout=result.stdout)

    server.start(archive_mode="off", wal_level="minimal", max_wal_senders="0")
    result = wal_e("check", "--json", str(server.data))
    assert states(result, "wal_level", "archive_mode", "archive_command", "max_wal_senders", "switch") == {
        "wal_level": "fail", "archive_mode": "fail", "archive_command": "skip", "max_wal_senders": "skip", "switch": "skip",
    }  # fmt: skip
    refusal(result, 2, "archive_mode is off", "wal_level is minimal", stdout=result.stdout)


def test_a_directory_that_is_none_and_a_server_of_another_cluster(healthy, make_server):
    server, _, wal_e = healthy
    result = wal_e("check", "--json", str(server.directory))
    assert states(result, "data directory", "server", "backlog", "last backup") == {
        "data directory": "fail", "server": "skip", "backlog": "skip", "last backup": "ok",
    }  # fmt: skip
    other = make_server(wal_segsize_mb=16)
    result = wal_e("check", "--json", str(other.data))
    assert results(result)["server"]["state"] == "fail"
    assert refusal(result, 2, "different clusters", stdout=result.stdout).error == "WrongCluster"


def test_missing_tools_directories_and_prefixes_are_each_told(healthy, make_place):
    server, _, wal_e = healthy
    empty = server.make_directory("empty-path")
    try:
        os.symlink(script(), empty / "wal-e")
        result = wal_e("check", "--json", env={"PATH": str(empty)})
        assert states(result, "lzop", "codec", "store", "delete") == {"lzop": "fail", "codec": "skip", "store": "ok", "delete": "ok"}
        assert "apt-get install lzop" in results(result)["lzop"]["hint"]
        assert refusal(result, 2, "lzop", stdout=result.stdout).error == "ToolMissing"
    finally:
        shutil.rmtree(empty)
    result = wal_e("check", "--json", env={"WALE_FILE_PREFIX": f"file://localhost{server.directory}/nowhere"})
    assert states(result, "store", "write", "last backup") == {"store": "fail", "write": "skip", "last backup": "skip"}
    refusal(result, 2, "does not exist", stdout=result.stdout)
    result = wal_e("check", "--json", env={"WALE_S3_PREFIX": "s3://bucket/pg"})
    assert states(result) == {"prefix": "fail"}
    refusal(result, 2, "two storage prefixes", stdout=result.stdout)


def test_a_codec_that_damages_what_passes_is_found(healthy):
    server, _, wal_e = healthy
    body = "if '-c' in sys.argv and '-d' not in sys.argv:\n    os.execv(real, ['lzop', '-c', '/etc/hostname'])"
    result = wal_e("check", "--json", env=fake_lzop(server, body))
    assert states(result) == {"codec": "fail"}
    assert refusal(result, 2, "codec", stdout=result.stdout).error == "DamageError"


def test_the_wal_of_the_newest_backup_is_missed(healthy, make_place):
    _, store, _ = healthy
    place = make_place()
    copy = place.directory / "store"
    place.run(["cp", "-a", store, copy])
    wal_e = Watched(place, copy)
    assert wal_e("check").returncode == 0
    name = wal_e("backup-list").stdout.splitlines()[-1].split("\t")[0]
    (copy / "wal_005" / f"{name[5:29]}.lzo").unlink()
    result = wal_e("check", "--json")
    assert states(result) == {"its WAL": "fail"}
    assert refusal(result, 2, name[5:29], stdout=result.stdout).error == "WalGap"


def test_on_a_standby_nothing_is_switched(healthy, make_server):
    server, store, _ = healthy
    data = server.directory / "standby"
    server.wal_e("backup-fetch", str(data), "LATEST")
    try:
        server.run(["touch", data / "standby.signal"])
        standby = make_server(data=data)
        standby.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}"}
        standby.start(restore_command='wal-e wal-fetch "%f" "%p"')
        result = Watched(standby, store)("check", "--json", str(data))
        standby.end()
    finally:
        shutil.rmtree(data)
    found = results(result)
    assert result.returncode == 0, result
    assert "standby" in found["server"]["seen"]
    assert "standby" in found["archive_mode"]["seen"]
    assert (found["switch"]["state"], found["backup functions"]["state"]) == ("skip", "ok")


# A network store.


def policy(bucket: str, name: str, *actions: str) -> None:
    """Let a user do what is named, and nothing else."""
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": [name]}, "Action": [f"s3:{action}"], "Resource": f"arn:aws:s3:::{bucket}{'' if 'Bucket' in action else '/*'}"}
        for action in actions
    ]
    fix_s3.admin(versity).put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))


@pytest.fixture(scope="module")
def s3():
    network = NETWORKS["s3"]()
    fix_s3.server(versity).add_user("checker", "a-secret-of-checker")
    return network


@pytest.fixture
def run(s3, make_place):
    """Check the place in S3, with other variables or through another port; no secret may be shown."""
    wal_e = Watched(make_place())

    def check(*arguments, port=None, **changes):
        environ = {**s3.environ_at(port or s3.port), **changes}
        result = wal_e("check", "--json", *arguments, env=environ)
        assert environ["AWS_SECRET_ACCESS_KEY"] not in result.stdout + result.stderr
        return result

    check.wal_e = wal_e
    return check


def bucket_of(network) -> str:
    return network.environ["WALE_S3_PREFIX"].split("/")[2]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_store_is_well_and_is_left_as_it_was(kind, make_place):
    network = NETWORKS[kind]()
    result = Watched(make_place())("check", "--json", "--thorough", env=network.environ)
    assert result.returncode == 0, result
    assert {record.level for record in records(result.stderr)} <= {"INFO"}, result.stderr  # in Swift, one who creates waits for another
    assert {name: one["state"] for name, one in results(result).items() if name in STORE} == dict.fromkeys(STORE, "ok")
    assert (network.objects(), network.unfinished()) == ([], 0)


def test_no_bucket_and_wrong_credentials_stop_at_the_store(run, s3):
    nowhere = s3.environ["WALE_S3_PREFIX"].replace(bucket_of(s3), "nowhere-at-all")
    for changes, words in (
        ({"WALE_S3_PREFIX": nowhere}, ("there is no bucket nowhere-at-all",)),
        ({"AWS_SECRET_ACCESS_KEY": "not-it-at-all"}, ("credentials", "SignatureDoesNotMatch")),
    ):
        result = run(**changes)
        found = results(result)
        assert {name for name, one in found.items() if one["state"] == "fail"} == {"store"}
        assert {found[name]["seen"] for name in STORE[2:]} == {"store failed"}
        for word in words:
            assert word in found["store"]["seen"]
        refusal(result, 2, "store", stdout=result.stdout)


RIGHTS = ("GetObject", "PutObject", "ListBucket", "DeleteObject")


@pytest.mark.parametrize(
    ("lacking", "failed"),
    [("PutObject", {"write"}), ("GetObject", {"identity", "read"}), ("ListBucket", {"list"}), ("DeleteObject", {"delete"})],
)
def test_each_right_that_is_lacking_is_named_by_itself(run, s3, lacking, failed):
    policy(bucket_of(s3), "checker", *(right for right in RIGHTS if right != lacking))
    before = s3.objects()
    result = run(AWS_ACCESS_KEY_ID="checker", AWS_SECRET_ACCESS_KEY="a-secret-of-checker")
    found = results(result)
    state = "warn" if lacking == "DeleteObject" else "fail"
    assert failed <= {name for name, one in found.items() if one["state"] == state}, found
    assert {name for name, one in found.items() if one["state"] == "fail"} <= failed
    for name in failed:
        assert f"s3:{lacking}" in found[name]["seen"] + found[name]["hint"], found[name]
    assert result.returncode == (0 if lacking == "DeleteObject" else 1)
    left = set(s3.objects()) - set(before)
    assert all(key.startswith("pg/main/probe_005/") for key in left)
    assert bool(left) == (lacking == "DeleteObject")
    for key in left:
        fix_s3.admin(versity).delete_object(Bucket=bucket_of(s3), Key=key)


def test_a_signal_removes_the_probe_first(run, s3):
    stall = Stall()
    with FaultProxy(s3.port) as proxy:
        proxy.add(Rule(stall, method="GET", path="probe_005/[0-9a-f]{16}"))
        with run.wal_e.started("check", env=s3.environ_at(proxy.port)) as process:
            wait_until(stall.reached.is_set, "the probe is read")
            assert [key for key in s3.objects() if "probe_005" in key]
            process.terminate()
            wait_until(lambda: process.poll() is not None, "the end of check")
            assert process.returncode == -signal.SIGTERM
    assert [key for key in s3.objects() if "probe_005" in key] == []


def test_a_store_that_is_away_is_told_soon_and_may_pass(run, s3):
    began = time.monotonic()
    with FaultProxy(s3.port) as proxy, proxy.refusing():
        result = run(port=proxy.port)
    assert time.monotonic() - began < 30, "the deadline of a push is ten times as long"
    assert states(result) == {"store": "fail"}
    assert refusal(result, 1, "store", stdout=result.stdout).error == "StoreUnavailable"
