"""The servers that other tests rely on: they come, they go, and they are as strict as those tests take them to be."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_postgres import client_programs, wait_until
from servers import azurite, gcs, gcs_token, moto, server, swift, versity

SERVERS = [moto, versity, gcs, azurite, swift]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(port, method, path, body=None, headers=()):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()


@pytest.mark.parametrize("module", SERVERS, ids=lambda module: module.__name__)
def test_a_server_answers_while_it_runs_and_is_gone_after(module, tmp_path):
    with module.running(tmp_path) as endpoint:
        assert listens(endpoint.port)
    assert not listens(endpoint.port)


@pytest.mark.parametrize("module", [versity, swift], ids=lambda module: module.__name__)
def test_a_server_dies_with_the_process_of_the_tests(module, tmp_path):
    with module.running(tmp_path):
        pass  # or skipped here, with the reason
    (tmp_path / "again").mkdir()
    program = f"""
        import os, pathlib, signal, sys
        import {module.__name__} as module
        with module.running(pathlib.Path(sys.argv[1])) as endpoint:
            print(endpoint.port, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "WALE_TEST_SERVERS": str(server._INSTALLED)}
    argv = [sys.executable, "-c", textwrap.dedent(program), tmp_path / "again"]
    child = subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    wait_until(lambda: not listens(int(child.stdout)), "the server has ended")
    wait_until(lambda: not processes_that_name(tmp_path / "again"), "its processes have ended")


def processes_that_name(path):
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in place.read_bytes():
                found.append(place)
    return found


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    with (
        pytest.raises(AssertionError, match=r"status 3(?s:.*)NO SUCH LUCK"),
        server.process(["sh", "-c", "echo no such luck | tr a-z A-Z; exit 3"], tmp_path / "log", lambda: False),
    ):
        pass


def test_a_server_that_stays_is_killed(tmp_path, monkeypatch):
    monkeypatch.setitem(server._PATIENCE_S, "stop", 0.2)
    told = tmp_path / "told"
    with server.process(["sh", "-c", "trap '' TERM; touch told; while :; do sleep 1; done"], tmp_path / "log", told.exists) as child:
        pass
    assert child.returncode == -signal.SIGKILL


def test_what_is_not_installed_is_skipped_with_the_reason_and_fails_where_it_is_required(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_INSTALLED", tmp_path)
    monkeypatch.setattr(server, "_REQUIRED", ["gcs"])
    name = f"moto-{server._VERSIONS['moto']}"
    with pytest.raises(pytest.skip.Exception, match="run script/test once"):
        server.require("moto", "s3")
    (tmp_path / f"{name}.missing").write_text("the network was away\n")
    with pytest.raises(pytest.skip.Exception, match=r"moto-.*: the network was away"):
        server.require("moto", "s3")
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="the network was away") as caught:
        server.require("moto", "gcs")
    assert caught.type is pytest.fail.Exception
    (tmp_path / name).mkdir()
    (tmp_path / name / ".done").touch()
    assert server.require("moto", "gcs") == tmp_path / name


def test_versitygw_grants_an_account_what_a_bucket_says(tmp_path):
    boto3 = pytest.importorskip("boto3")
    with versity.running(tmp_path) as endpoint:
        endpoint.add_user("reader", "secret-of-reader")

        def client(access_key, secret_key):
            return boto3.client("s3", endpoint_url=endpoint.url, region_name=endpoint.region, aws_access_key_id=access_key, aws_secret_access_key=secret_key)

        owner, reader = client(endpoint.access_key, endpoint.secret_key), client("reader", "secret-of-reader")
        owner.create_bucket(Bucket="bucket")
        owner.put_object(Bucket="bucket", Key="key", Body=b"content")
        with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
            reader.get_object(Bucket="bucket", Key="key")
        statement = {"Effect": "Allow", "Principal": {"AWS": ["reader"]}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"}
        owner.put_bucket_policy(Bucket="bucket", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
        assert reader.get_object(Bucket="bucket", Key="key")["Body"].read() == b"content"
        with pytest.raises(reader.exceptions.ClientError, match="AccessDenied"):
            reader.put_object(Bucket="bucket", Key="key", Body=b"")


def test_swift_refuses_what_is_larger_than_its_largest_object_and_a_wrong_key(tmp_path):
    with swift.running(tmp_path, max_file_size=2000) as endpoint:
        assert ask(endpoint.port, "GET", "/auth/v1.0", headers={"X-Auth-User": endpoint.user, "X-Auth-Key": "wrong"})[0] == 401
        _, headers, _ = ask(endpoint.port, "GET", "/auth/v1.0", headers={"X-Auth-User": endpoint.user, "X-Auth-Key": endpoint.key})
        token, path = {"X-Auth-Token": headers["X-Auth-Token"]}, headers["X-Storage-Url"].split(str(endpoint.port))[1]
        assert ask(endpoint.port, "PUT", f"{path}/container", headers=token)[0] == 201
        assert ask(endpoint.port, "PUT", f"{path}/container/small", b"x" * 2000, token)[0] == 201
        assert ask(endpoint.port, "PUT", f"{path}/container/large", b"x" * 2001, token)[0] == 413


class Google:
    """The emulator with one bucket, asked without a library between."""

    def __init__(self, port):
        self.port = port
        assert ask(port, "POST", "/storage/v1/b?project=tests", '{"name": "bucket"}', {"Content-Type": "application/json"})[0] == 200

    def put(self, key, content=b"", query="", **headers):
        return ask(self.port, "POST", f"/upload/storage/v1/b/bucket/o?uploadType=media&name={key}{query}", content, headers)

    def get(self, key, query="", **headers):
        return ask(self.port, "GET", f"/download/storage/v1/b/bucket/o/{key}?alt=media{query}", headers=headers)

    def begin(self, key, query=""):
        path = f"/upload/storage/v1/b/bucket/o?uploadType=resumable&name={key}{query}"
        status, headers, _ = ask(self.port, "POST", path, "{}", {"Content-Type": "application/json"})
        return status if status != 200 else headers["Location"].split(str(self.port))[1]

    def send(self, session, span, content=b"", **headers):
        return ask(self.port, "PUT", session, content, {"Content-Range": f"bytes {span}", **headers})

    def unfinished(self):
        return json.loads(ask(self.port, "GET", "/uploads")[2])


@pytest.fixture
def google(tmp_path):
    with gcs.running(tmp_path) as endpoint:
        yield Google(endpoint.port)


def test_google_lets_one_of_many_create_an_object(google):
    contents = [b"%d" % turn * 2_000_000 for turn in range(8)]  # long, that the emulator's work on them may overlap
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda content: google.put("key", content, "&ifGenerationMatch=0")[0], contents))
    assert sorted(statuses) == [200] + [412] * 7
    assert google.get("key")[2] == contents[statuses.index(200)]


def test_google_looks_at_the_condition_when_an_upload_begins_and_when_it_ends(google):
    session = google.begin("key", "&ifGenerationMatch=0")
    assert google.send(session, "0-3/*", b"mine")[0] == 308
    google.put("key", b"theirs")
    assert google.send(session, "4-4/*", b"!")[0] == 308
    assert google.send(session, "5-5/6", b"!")[0] == 412
    assert google.begin("key", "&ifGenerationMatch=0") == 412
    assert google.get("key")[2] == b"theirs"
    assert google.unfinished() == []


def test_google_remembers_what_an_upload_has_received(google):
    session = google.begin("key")
    assert google.send(session, "*/*")[1]["Range"] is None
    assert google.send(session, "0-3/*", b"half")[1]["Range"] == "bytes=0-3"
    assert google.unfinished() == ["key"]
    first = json.loads(google.send(session, "4-4/5", b"!")[2])
    assert first["size"] == "5"
    assert json.loads(google.send(session, "*/*")[2])["generation"] == first["generation"]
    cancelled = google.begin("other")
    assert ask(google.port, "DELETE", cancelled)[0] == 499
    assert google.send(cancelled, "*/*")[0] == 404
    assert google.unfinished() == []


def test_google_takes_nothing_of_a_body_that_was_cut_short(google):
    for head in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]:
        with socket.create_connection(("127.0.0.1", google.port)) as connection:
            connection.sendall(f"POST /upload/storage/v1/b/bucket/o?uploadType=media&name=key HTTP/1.1\r\nHost: here\r\n{head}".encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        assert google.get("key")[0] == 404


def test_google_refuses_a_sum_that_is_wrong(google):
    session = google.begin("key")
    assert google.send(session, "0-3/4", b"half", **{"X-Goog-Hash": "crc32c=AAAAAA=="})[0] == 400
    assert google.get("key")[0] == 404


def test_google_gives_ranges_and_generations(google):
    generation = json.loads(google.put("key", b"012345")[2])["generation"]
    for span, expected in [("1-2", b"12"), ("4-", b"45"), ("4-99", b"45"), ("-2", b"45"), ("-99", b"012345")]:
        status, headers, content = google.get("key", Range=f"bytes={span}")
        assert (status, content, headers["X-Goog-Generation"]) == (206, expected, generation)
    assert google.get("key", Range="bytes=6-")[0] == 416
    assert google.get("key", f"&generation={generation}")[0] == 200
    assert google.get("key", "&generation=1")[0] == 404
    assert google.get("key", "&ifGenerationMatch=1")[0] == 412


def test_google_lists_in_pages_and_says_what_is_absent(google):
    for key in ["b", "a%2F%2Fb", "a%2F", "a-"]:
        google.put(key)
    found, token = [], ""
    while token is not None:
        page = json.loads(ask(google.port, "GET", f"/storage/v1/b/bucket/o?maxResults=3&pageToken={token}")[2])
        found.append([item["name"] for item in page["items"]])
        token = page.get("nextPageToken")
    assert found == [["a-", "a/", "a//b"], ["b"]]
    assert b"No such object: bucket/absent" in google.get("absent")[2]
    assert b"bucket does not exist" in ask(google.port, "GET", "/storage/v1/b/other/o")[2]


@pytest.mark.parametrize(("token", "granted"), [("reader", "gl"), ("writer", "gp"), ("nobody", ""), ("expired", ""), ("owner", "glpd")])
def test_google_grants_access_by_token(google, token, granted):
    headers = {"Authorization": f"Bearer {token}"}
    google.put("key")
    refused = 401 if token == "expired" else 403
    statuses = {
        "g": google.get("key", **headers)[0],
        "l": ask(google.port, "GET", "/storage/v1/b/bucket/o", headers=headers)[0],
        "p": google.put("other", **headers)[0],
        "d": ask(google.port, "DELETE", "/storage/v1/b/bucket/o/key", headers=headers)[0],
    }
    assert statuses == {act: 200 if act in granted else refused for act in statuses}


def test_googles_library_gets_its_tokens_from_the_stand_in(tmp_path):
    pytest.importorskip("google.auth")
    program = "import google.auth, google.auth.transport.requests as t; c, p = google.auth.default(['a']); c.refresh(t.Request()); print(p, c.token)"
    with gcs_token.running(tmp_path, machine="machine") as endpoint:
        for environ, expected in [(endpoint.environ, "tests machine"), ({"GOOGLE_APPLICATION_CREDENTIALS": str(endpoint.key_file("reader"))}, "tests reader")]:
            environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environ}
            child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=60)
            assert child.stdout.strip() == expected, child.stderr


@pytest.mark.parametrize("major", range(10, 19))
def test_every_major_version_of_postgresql_can_be_had(make_server, major):
    running = make_server(major=major, wal_segsize_mb=16 if major == 10 else 1, checksums=major % 2 == 0)
    running.start()
    assert int(running.psql("show server_version_num")) // 10000 == major
    assert running.psql("show data_checksums") == ("on" if major % 2 == 0 else "off")


def test_the_client_programs_of_postgresql_run():
    for name in ("pg_verifybackup", "pg_waldump", "pg_controldata"):
        assert "18" in subprocess.check_output([client_programs() / name, "--version"], text=True)
