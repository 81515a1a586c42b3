"""The whole way on every network store: push a working server, lose it, bring it back. Also through a network that breaks."""

import json
import shutil
import threading

import pytest
from fault_proxy import FaultProxy
from fault_rules import CutEvery, Delay, Rule, Stall, slow_down
from fix_archive import Watched, settled
from fix_network import NETWORKS
from fix_postgres import bindir, give_to_server_user, wait_until


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def archiving_server(make_server, environ):
    server = make_server()
    server.environ |= {**environ, "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_mode="on", archive_command="wal-e wal-push %p")
    return server


def fill(server):
    """A table that no codec shrinks much, so that partitions go up in parts, and some that are shrunk."""
    server.pgbench("-i", "-q", "-s", "2")
    server.psql("create table noise as select n, sha512(n::text::bytea) || sha512((-n)::text::bytea) as noise from generate_series(1, 350000) as n")


def dump(server):
    lines = server.run([bindir() / "pg_dump", "postgres"]).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # followed by random words


def push_under_load(server, *options):
    load = threading.Thread(target=lambda: server.pgbench("-n", "-c", "2", "-T", "4"))
    load.start()
    pushed = server.wal_e("backup-push", str(server.data), "--fast", "--pool-size", "2", *options)
    load.join()
    server.psql("select pg_switch_wal()")
    settled(server)
    return pushed


def restored(make_server, origin):
    target = origin.directory / "restored"
    origin.wal_e("backup-fetch", str(target), "LATEST")
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name not in server.environ}
    (target / "recovery.signal").touch()
    server.start(archive_mode="off", restore_command='wal-e wal-fetch "%f" "%p"')
    server.wait_for("select not pg_is_in_recovery()")
    return server


def names_of_the_only_backup(server):
    """Every name that a prefix with one backup may hold, below it; WAL apart."""
    (backup,) = json.loads(server.wal_e("backup-list", "--json").stdout)
    name = backup["name"]
    partitions = {f"basebackups_005/{name}/tar_partitions/part_{number:08d}.tar.lzo" for number in range(backup["partitions"])}
    others = {f"basebackups_005/{name}/extended_version.txt", f"basebackups_005/{name}_backup_stop_sentinel.json", backup["manifest_key"], "identity_005.json"}
    return partitions | others


def test_a_loaded_server_comes_back_whole(make_server, network):
    origin = archiving_server(make_server, network.environ)
    fill(origin)
    push_under_load(origin)
    before = dump(origin)
    target = restored(make_server, origin)
    assert dump(target) == before
    checked = target.run([bindir() / "pg_amcheck", "--install-missing", "--heapallindexed", "--all"])
    assert checked.stdout + checked.stderr == ""


def test_a_network_that_breaks_costs_time_and_nothing_else(make_server, network):
    with FaultProxy(network.port) as proxy:
        proxy.add(Rule(CutEvery(20_000_000, over_all=True)), Rule(slow_down(), probability=0.05, seed=1))
        origin = archiving_server(make_server, network.environ_at(proxy.port))
        fill(origin)
        push_under_load(origin)
        before = dump(origin)
        faults = [fault for record in proxy.log for fault in record.faults]
        assert len(faults) > 3
        held = {name.removeprefix("pg/main/") for name in network.objects()}
        assert {name for name in held if not name.startswith("wal_005/")} == names_of_the_only_backup(origin)
        assert network.unfinished() == 0
        target = restored(make_server, origin)
        assert dump(target) == before


def test_uploads_of_the_installed_script_overlap_on_a_slow_store(network, make_place, segment):
    place = make_place()
    pg_wal = place.make_directory("pg_wal")
    status = place.make_directory("pg_wal/archive_status")
    names = [f"0000000100000000000000{number:02X}" for number in range(3, 8)]
    for name in names:
        shutil.copy(segment(name), pg_wal / name)
        (status / f"{name}.ready").touch()
    give_to_server_user(pg_wal)
    with FaultProxy(network.port) as proxy:
        place.environ |= {**network.environ_at(proxy.port), "WALE_LOG_DESTINATION": "stderr"}
        wal_e = Watched(place)
        assert wal_e("wal-push", str(pg_wal / names[0]), "--pool-size", "1").returncode == 0  # claims the prefix
        proxy.clear()
        proxy.add(Rule(Delay(1.0), method="PUT|POST", path="wal_005"))
        assert wal_e("wal-push", str(pg_wal / names[1])).returncode == 0
        assert proxy.overlap > 1


@pytest.mark.parametrize("name", ["s3", "azure", "swift"])  # at Google an unfinished upload ends by itself, and costs nothing
def test_what_a_killed_push_leaves_out_of_sight_is_garbage_and_removed(make_server, name):
    network = NETWORKS[name]()
    origin = make_server()
    origin.start()
    fill(origin)
    origin.stop()
    with FaultProxy(network.port) as proxy:
        origin.environ |= {**network.environ_at(proxy.port), "WALE_LOG_DESTINATION": "stderr"}
        stall = Stall()
        proxy.add(Rule(stall, method="PUT", path="tar_partitions", skip=3))
        with Watched(origin).started("backup-push", str(origin.data), "--while-offline", "--pool-size", "1") as push:
            assert stall.reached.wait(60)
            wait_until(lambda: sum(record.status in (200, 201) for record in proxy.log if "tar_partitions" in record.path) >= 2, "two parts to be stored")
            push.kill()
    origin.environ |= network.environ
    assert network.unfinished() > 0
    seen = origin.wal_e("delete", "garbage", "--older-than", "0")
    assert "--confirm" in seen.stdout
    assert network.unfinished() > 0
    origin.wal_e("delete", "--confirm", "garbage", "--older-than", "0")
    again = json.loads(origin.wal_e("delete", "--json", "garbage", "--older-than", "0").stdout)
    assert again["leftovers"]["objects"] == 0
    assert network.objects() == ["pg/main/identity_005.json"]
    assert network.unfinished() == 0 or name == "azure"  # which keeps a byte of each block for a week
