"""A server that is shut down while its store is away: it waits for archive_command, which must not wait for the store."""

import socket

import pytest
from fix_archive import script
from fix_postgres import wait_until


@pytest.fixture
def closed_port():
    """A port that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_shutdown_does_not_wait_for_the_push_deadline(make_server, closed_port):
    environ = f"AWS_ENDPOINT_URL=http://127.0.0.1:{closed_port} AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b WALE_S3_PREFIX=s3://b/p WALE_LOG_DESTINATION=stderr"
    server = make_server(settings={"archive_mode": "on", "archive_command": f"env {environ} {script()} wal-push %p"})
    server.start()
    server.psql("select pg_switch_wal()")
    wait_until(lambda: "trying again" in server.log_text(), "a push that waits for its store")
    server.stop("fast")  # pg_ctl gives up after a minute, the push after five
    assert list((server.data / "pg_wal/archive_status").glob("*.ready"))
    assert "the archive command was terminated" not in server.log_text()


def test_reading_from_a_store_that_is_away_keeps_to_the_push_deadline(make_server, closed_port):
    server = make_server()
    environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "WALE_S3_PREFIX": "s3://b/p"}
    segment = next((server.data / "pg_wal").glob("0*"))
    pushed = server.wal_e("wal-push", str(segment), env={**environ, "WALE_PUSH_DEADLINE": "0.01", "WALE_FETCH_DEADLINE": "100000"}, check=False)
    assert pushed.returncode == 1
