"""What a real server does with wal-fetch's statuses: it never goes on without WAL because the store was away."""

import shutil

import pytest
from fix_archive import archive_into_store, fill_archive
from fix_postgres import wait_until


@pytest.fixture
def origin(make_server):
    """A server with a base backup, and rows that are in the archive but not in the backup."""
    server = make_server(wal_segsize_mb=1)
    store = archive_into_store(server)
    fill_archive(server)
    return server, store


@pytest.fixture
def restored(origin, make_server):
    """A server on the fetched backup, not started, that will recover from the archive."""
    server, _ = origin
    target = server.directory / "restored"
    server.wal_e("backup-fetch", str(target), "LATEST")
    copy = make_server(data=target)
    copy.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")} | {"WALE_FETCH_DEADLINE": "1"}
    copy.configure(archive_mode="off", restore_command="wal-e wal-fetch %f %p -p 0", wal_retrieve_retry_interval="200ms")
    return copy


def has_stopped(server):
    wait_until(lambda: not server.is_running(), f"the server stops\n{server.log_text()}")


def is_whole(server):
    server.wait_for("select not pg_is_in_recovery()")
    assert server.psql("select count(*) from t") == "4000"


def spoil_second_last(store):
    """Damage the last but one segment; return its path and what it was."""
    segment = sorted(store.glob("wal_005/????????????????????????.lzo"))[-2]
    content = segment.read_bytes()
    segment.write_bytes(content[: len(content) // 2])
    return segment, content


def test_the_end_of_the_archive_ends_the_recovery(restored):
    (restored.data / "recovery.signal").touch()
    restored.start()
    is_whole(restored)


def test_a_recovering_server_stops_when_the_store_is_gone_and_goes_on_when_it_is_back(origin, restored):
    _, store = origin
    away = store.with_name("away")
    store.rename(away)
    (restored.data / "recovery.signal").touch()
    restored.start(check=False)
    has_stopped(restored)
    assert "the directory of the store does not exist" in restored.log_text()
    assert "selected new timeline" not in restored.log_text()
    away.rename(store)
    restored.start()
    is_whole(restored)


def test_a_recovering_server_stops_when_the_store_lies_empty_as_an_unmounted_one_does(origin, restored):
    _, store = origin
    store.rename(store.with_name("away"))
    origin[0].make_directory("store")
    (restored.data / "recovery.signal").touch()
    restored.start(check=False)
    has_stopped(restored)
    assert "holds no WAL at all" in restored.log_text()
    assert "selected new timeline" not in restored.log_text()


def test_a_recovering_server_stops_at_a_damaged_segment_instead_of_being_promoted_without_the_rest(origin, restored):
    segment, content = spoil_second_last(origin[1])
    (restored.data / "recovery.signal").touch()
    restored.start(check=False)
    has_stopped(restored)
    assert segment.name in restored.log_text()
    assert "selected new timeline" not in restored.log_text()
    segment.write_bytes(content)
    restored.start()
    is_whole(restored)


def test_a_recovering_server_stops_when_there_is_no_lzop(restored):
    path = restored.environ["PATH"]
    restored.environ["PATH"] = str(restored.make_directory("no-programs"))
    script = shutil.which("wal-e", path=path)
    (restored.data / "recovery.signal").touch()
    restored.start(check=False, restore_command=f"{script} wal-fetch %f %p")
    has_stopped(restored)
    assert "lzop cannot be started" in restored.log_text()
    restored.environ["PATH"] = path
    restored.start()
    is_whole(restored)


def test_a_standby_stays_up_while_the_store_is_away_and_goes_on_when_it_is_back(origin, restored):
    _, store = origin
    away = store.with_name("away")
    store.rename(away)
    (restored.data / "standby.signal").touch()
    restored.start(wait=False, hot_standby="on")
    wait_until(lambda: restored.log_text().count("the directory of the store does not exist") >= 3, f"the standby asks again\n{restored.log_text()}")
    assert restored.is_running()
    away.rename(store)
    wait_until(lambda: "consistent recovery state" in restored.log_text(), "the standby goes on")
    restored.wait_for("select count(*) = 4000 from t")
    assert restored.psql("select pg_is_in_recovery()") == "t"
