"""wal-verify and wal-show over the archive of a real server that went on to a second timeline, spoiled in every way."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_archive import Watched, archive_into_store, backups, refusal, settled, stored_wal
from fix_network import NETWORKS
from fix_postgres import give_to_server_user

PAGE = 8192
HOUR_S = 3600


class Lived(NamedTuple):
    """A running server on timeline 2, its store, and the names of three backups there, the last on timeline 2."""

    server: object
    store: Path
    names: list[str]


def rows(server, number):
    """Let WAL grow by some segments of 1 MiB."""
    server.psql("create table if not exists t (n int, filler text)")
    server.psql(f"insert into t select n, repeat(md5(n::text), 60) from generate_series(1, {number}) as n")
    server.psql("select pg_switch_wal()")


def backup(server):
    server.wal_e("backup-push", str(server.data), "--fast")


@pytest.fixture(scope="module")
def lived(make_shared_server):
    server = make_shared_server()
    store = archive_into_store(server)
    rows(server, 3000)
    backup(server)
    rows(server, 1000)
    backup(server)
    rows(server, 1000)
    server.psql("insert into t select n, 'x' from generate_series(1, 500) as n")  # ends in the middle of a segment
    server.stop()
    (server.data / "recovery.signal").touch()
    give_to_server_user(server.data / "recovery.signal")
    server.start(restore_command='wal-e wal-fetch "%f" "%p"')
    server.wait_for("select not pg_is_in_recovery()")
    rows(server, 1000)
    backup(server)
    rows(server, 1000)
    settled(server)
    names = backups(server)
    assert [name[5:13] for name in names] == ["00000001", "00000001", "00000002"]
    return Lived(server, store, names)


@pytest.fixture
def spoilt(lived, make_place):
    """A copy of that store, an hour old, to be spoiled; the place has no server of its own."""
    place = make_place()
    store = place.directory / "store"
    place.run(["cp", "-a", lived.store, store])
    then = time.time() - HOUR_S
    for path in (store / "wal_005").iterdir():
        os.utime(path, (then, then))
    return Lived(place, store, lived.names)


def verified(result, status=0):
    """The document of a run."""
    assert result.returncode == status, result.stderr
    document = json.loads(result.stdout)
    assert document["whole"] == (status == 0)
    return document


def run(spoilt, *options, server=""):
    """Verify without a server, or with one that listens there."""
    return Watched(spoilt.server, spoilt.store)("wal-verify", "--json", *options, env={"PGHOST": str(server)})


def key(name):
    return f"wal_005/{name}.lzo"


def segments(store, timeline=1):
    return [name for name in stored_wal(store) if int(name[:8], 16) == timeline]


def between(spoilt):
    """A segment of timeline 1 behind the second backup and before the switch of timelines."""
    return segments(spoilt.store)[-2]


def decoded(path):
    return subprocess.run(["lzop", "-dc"], input=path.read_bytes(), stdout=subprocess.PIPE, check=True).stdout


def encode(path, data):
    path.write_bytes(subprocess.run(["lzop", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout)


def test_a_whole_archive_is_whole_and_every_page_of_it_is_good(spoilt):
    document = verified(run(spoilt, "--content"))
    one, two = document["timelines"]
    assert (one["timeline"], one["parent"], one["history"]) == (1, None, None)
    assert (two["timeline"], two["parent"], two["history"]) == (2, 1, "stored")
    assert [span["first"] for span in one["partial"]] == [two["first"].replace("00000002", "00000001", 1)]
    assert (one["first"], one["last"], one["segments"]) == (segments(spoilt.store)[0], segments(spoilt.store)[-1], len(segments(spoilt.store)))
    assert document["gaps"] == []
    assert [known["name"] for known in document["backups"]] == spoilt.names
    assert {(known["usable"], known["missing"], known["target_timeline"], known["recovers_to"]) for known in document["backups"]} == {
        (True, None, 2, two["last"])
    }
    assert document["segment_size"] == 1 << 20
    assert document["server"] is None
    stored = len(list((spoilt.store / "wal_005").iterdir()))
    assert document["content"] == {**document["content"], "checked": stored, "known_good": 0, "damaged": [], "unreadable": []}
    assert document["content"]["checked_bytes"] == sum(path.stat().st_size for path in (spoilt.store / "wal_005").iterdir())


def test_the_second_check_reads_nothing_but_what_is_new_and_again_reads_all(spoilt):
    last = spoilt.store / key(segments(spoilt.store, 2)[-1])
    aside = spoilt.server.directory / "aside"
    shutil.move(last, aside)
    first = verified(run(spoilt, "--content"))["content"]
    shutil.move(aside, last)
    os.utime(last)
    second = verified(run(spoilt, "--content"))["content"]
    assert (second["checked"], second["known_good"], second["checked_bytes"]) == (1, first["checked"], last.stat().st_size)
    third = verified(run(spoilt, "--content"))["content"]
    assert (third["checked"], third["known_good"]) == (0, first["checked"] + 1)
    assert verified(run(spoilt, "--content", "--again"))["content"]["checked"] == first["checked"] + 1


def test_a_segment_that_was_replaced_after_its_check_is_checked_again(spoilt):
    verified(run(spoilt, "--content"))
    path = spoilt.store / key(between(spoilt))
    path.write_bytes(path.read_bytes()[:-30])
    found = verified(run(spoilt, "--content"), 2)["content"]
    assert [one["key"] for one in found["damaged"]] == [key(between(spoilt))]
    assert [one["key"] for one in verified(run(spoilt, "--content"), 2)["content"]["damaged"]] == [key(between(spoilt))], "damage is never remembered as good"


def test_a_missing_segment_on_the_way_is_a_gap_that_names_the_backups_in_front_of_it(spoilt):
    missing = between(spoilt)
    (spoilt.store / key(missing)).unlink()
    result = run(spoilt)
    document = verified(result, 2)
    error = refusal(result, 2, missing, "not in the store", spoilt.names[0], "1 other backup", "wal-push --missing", stdout=result.stdout)
    assert error.error == "WalGap"
    (gap,) = document["gaps"]
    assert (gap["first"], gap["last"], gap["segments"], gap["needed_by"]) == (missing, missing, 1, spoilt.names[:2])
    assert [known["missing"] for known in document["backups"]] == [missing, missing, None]
    shown = Watched(spoilt.server, spoilt.store)("wal-show")
    assert shown.returncode == 0
    assert f"GAP: {missing} is missing, needed by {spoilt.names[0]} and 1 other backup" in shown.stdout
    assert shown.stdout.splitlines()[-2] == "1 of 3 backups can be recovered to the end of the stored WAL"


def test_a_backup_without_the_wal_of_its_own_time_is_unusable(spoilt):
    start = spoilt.names[1][5:29]
    (spoilt.store / key(start)).unlink()
    result = run(spoilt)
    assert [known["usable"] for known in verified(result, 2)["backups"]] == [True, False, True]
    refusal(result, 2, start, spoilt.names[1], "cannot be used without it", stdout=result.stdout)


def test_a_gap_before_the_oldest_backup_is_told_and_is_no_failure(spoilt):
    second = segments(spoilt.store)[1]
    assert second < spoilt.names[0][5:29]
    (spoilt.store / key(second)).unlink()
    document = verified(run(spoilt))
    assert [(gap["first"], gap["needed_by"]) for gap in document["gaps"]] == [(second, [])]
    assert document["needless_segments"] == len([name for name in segments(spoilt.store) if name < spoilt.names[0][5:29]])
    text = Watched(spoilt.server, spoilt.store)("wal-verify", env={"PGHOST": ""})
    assert text.returncode == 0
    assert f"gap on timeline 1: {second} is missing, which no backup needs" in text.stdout
    assert text.stdout.splitlines()[-1].startswith("whole")


def spoil_codec(path, store):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_name(path, store):
    shutil.copyfile(store / key(segments(store)[0]), path)


def spoil_page(path, store):
    data, other = decoded(path), decoded(store / key(segments(store)[0]))
    encode(path, data[: 3 * PAGE] + other[3 * PAGE : 4 * PAGE] + data[4 * PAGE :])


def spoil_size(path, store):
    encode(path, decoded(path)[: -PAGE * 2])


def spoil_codec_mark(path, store):
    path.write_bytes(decoded(path))


@pytest.mark.parametrize("spoil", [spoil_codec, spoil_name, spoil_page, spoil_size, spoil_codec_mark])
def test_every_kind_of_damage_is_found_by_content_and_by_nothing_less(spoilt, spoil):
    victim = between(spoilt)
    spoil(spoilt.store / key(victim), spoilt.store)
    verified(run(spoilt))
    result = run(spoilt, "--content")
    document = verified(result, 2)
    assert [one["key"] for one in document["content"]["damaged"]] == [key(victim)]
    assert refusal(result, 2, "1 stored WAL file is damaged", key(victim), stdout=result.stdout).error == "DamageError"


def test_all_damage_is_named_with_histories_backup_files_and_partial_segments(spoilt):
    victims = [path for path in sorted((spoilt.store / "wal_005").iterdir()) if {"history", "backup", "partial"} & set(path.name.split("."))]
    assert len(victims) == 5
    victims.append(spoilt.store / key(between(spoilt)))
    for path in victims:
        encode(path, b"nonsense")
    result = run(spoilt, "--content")
    document = verified(result, 2)
    assert sorted(one["key"] for one in document["content"]["damaged"]) == sorted(f"wal_005/{path.name}" for path in victims)
    refusal(result, 2, "6 stored WAL files are damaged", *(path.name for path in victims), stdout=result.stdout)
    assert document["timelines"][-1]["history"] == "damaged"


def test_a_segment_under_two_suffixes_is_told(spoilt):
    name = between(spoilt)
    identity = spoilt.store / "identity_005.json"
    document = json.loads(identity.read_text())
    identity.write_text(json.dumps({**document, "wal_suffixes": [".lzo", ".raw"]}))
    (spoilt.store / f"wal_005/{name}.raw").write_bytes(decoded(spoilt.store / key(name)))
    give_to_server_user(spoilt.store)
    found = verified(run(spoilt, "--content"))
    assert [span["first"] for span in found["timelines"][0]["stored_twice"]] == [name]
    (spoilt.store / f"wal_005/{name}.raw").unlink()
    assert found["timelines"][0]["segments"] == len(segments(spoilt.store))


def test_the_server_and_the_store_agree_until_what_was_archived_last_is_gone(lived, spoilt):
    wal_e = Watched(lived.server, spoilt.store)
    document = verified(wal_e("wal-verify", "--json", str(lived.server.data)))
    last = lived.server.psql("select last_archived_wal from pg_stat_archiver")
    assert (document["server"]["last_archived_wal"], document["server"]["last_archived_is_stored"]) == (last, True)
    assert verified(wal_e("wal-verify", "--json"))["server"]["last_archived_wal"] == last, "libpq's variables name the server, too"
    for name in segments(spoilt.store, 2):
        if name >= last:  # a later one may have gone up beside it
            (spoilt.store / key(name)).unlink()
    result = wal_e("wal-verify", "--json", str(lived.server.data))
    assert refusal(result, 2, last, spoilt.names[0], "wal-push --missing", stdout=result.stdout).error == "WalGap"
    assert [gap["first"] for gap in verified(result, 2)["gaps"]] == [last]
    assert verified(run(spoilt))["gaps"] == [], "without the server nobody can know"


def test_a_server_that_is_away_is_told_and_is_an_error_only_if_it_was_asked_for(lived, spoilt, make_place, _template):
    document = verified(run(spoilt, server=spoilt.server.directory))
    assert "cannot connect" in document["server"]["error"]
    place = make_place()
    place.run(["cp", "-a", _template(1), place.data], libpq=False)  # of the same cluster, not running
    result = Watched(place, spoilt.store)("wal-verify", "--json", str(place.data), env={"PGHOST": ""})
    assert refusal(result, 1, "no PostgreSQL server runs", stdout=result.stdout).error == "ServerUnavailable"
    assert json.loads(result.stdout)["gaps"] == []


def test_another_cluster_is_refused(spoilt, make_server):
    other = make_server()  # of 16 MiB, and so of another template
    result = Watched(other, spoilt.store)("wal-verify", str(other.data))
    assert refusal(result, 2, "another cluster").error == "WrongCluster"
    other.start()
    result = Watched(other, spoilt.store)("wal-verify")
    assert refusal(result, 2, "another cluster").error == "WrongCluster"


def test_nothing_is_written_without_content_and_again_alone_is_refused(spoilt):
    wal_e = Watched(spoilt.server, spoilt.store)
    for arguments in (["wal-verify"], ["wal-show"], ["wal-show", "--json"]):
        assert wal_e(*arguments, env={"PGHOST": ""}).returncode == 0
    assert not (spoilt.store / "checked_005.json").exists()
    refusal(wal_e("wal-verify", "--again"), 2, "--content")


@pytest.mark.parametrize(("encoding", "stroke"), [("utf-8", "└── "), ("ascii", "`-- ")])
def test_the_tree_is_drawn_with_what_the_terminal_can_show(spoilt, encoding, stroke):
    shown = Watched(spoilt.server, spoilt.store)("wal-show", env={"PYTHONIOENCODING": encoding})
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert any(line.startswith(f"{stroke}timeline 2, left timeline 1 at 0/") for line in lines)
    assert lines[-2:][0] == "3 of 3 backups can be recovered to the end of the stored WAL"


def test_the_store_of_a_network_is_verified_and_remembers_what_was_checked(spoilt):
    network = NETWORKS["s3"]()
    place = spoilt.server
    place.environ |= {**network.environ, "WALE_LOG_DESTINATION": "stderr"}
    put = "import sys; from wal_e.settings import Settings; from wal_e.blobstore.registry import open_store, call_directly; import os, pathlib\n"
    put += "store = open_store(Settings(os.environ, {}), lanes=1, offload=call_directly); root = pathlib.Path(sys.argv[1])\n"
    put += "[store.put(str(path.relative_to(root)), [path.read_bytes()]) for path in sorted(root.rglob('*')) if path.is_file()]"
    place.run([Path(os.sys.executable), "-c", put, str(spoilt.store)])
    wal_e = Watched(place)
    wal_e.env["PGHOST"] = ""
    first = verified(wal_e("wal-verify", "--json", "--content"))["content"]
    assert first["checked"] == len(list((spoilt.store / "wal_005").iterdir()))
    assert verified(wal_e("wal-verify", "--json", "--content"))["content"]["checked"] == 0
    assert "pg/main/checked_005.json" in network.objects()
