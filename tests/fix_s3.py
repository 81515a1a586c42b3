"""S3 stores for tests: moto and versitygw, one server of each for the session, a bucket for each store."""

import atexit
import contextlib
import http.server
import itertools
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

from servers import moto, versity

from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings

_SERVERS = contextlib.ExitStack()
atexit.register(_SERVERS.close)
_NUMBERS = itertools.count()


@cache
def server(kind):
    """The session's server of a kind, started when first asked for."""
    directory = _SERVERS.enter_context(tempfile.TemporaryDirectory(prefix="wal-e-s3-"))
    return _SERVERS.enter_context(kind.running(Path(directory)))


@cache
def admin(kind):
    """A client of the server with all rights, for what a store does not do."""
    return client(server(kind))


def client(endpoint, url=None):
    import botocore.session

    session = botocore.session.Session()
    session.set_credentials(endpoint.access_key, endpoint.secret_key)
    return session.create_client("s3", region_name=endpoint.region, endpoint_url=url or endpoint.url)


def new_bucket(kind):
    """A new empty bucket's name."""
    name = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
    admin(kind).create_bucket(Bucket=name)
    return name


def without_aws(monkeypatch, tmp_path):
    """Let no AWS variable, profile or metadata service of the machine in."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def set_keys(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", endpoint.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", endpoint.secret_key)


def settings(url, bucket, path="/some/prefix", **others):
    """The settings of a store in a bucket behind a URL; others are fields, for instance ``s3_sse``."""
    variables = {"WALE_S3_PREFIX": f"s3://{bucket}{path}", "WALE_S3_ENDPOINT": url.replace("://", "+path://")}
    return Settings(variables | {"WALE_FETCH_DEADLINE": "20", "WALE_PUSH_DEADLINE": "20", "WALE_RETRIES": "10"} | others)


def _store(kind, tmp_path, monkeypatch):
    endpoint = server(kind)
    without_aws(monkeypatch, tmp_path)
    set_keys(monkeypatch, endpoint)
    return open_store(settings(endpoint.url, new_bucket(kind)))


def s3_moto_store(tmp_path, monkeypatch):
    return _store(moto, tmp_path, monkeypatch)


def s3_store(tmp_path, monkeypatch):
    return _store(versity, tmp_path, monkeypatch)


class Asked(NamedTuple):
    """One request that a canned server got."""

    method: str
    path: str
    query: str
    headers: dict
    body: bytes


def document(code, message="No words.", **others):
    """An error document, as S3 writes it."""
    rest = "".join(f"<{name}>{text}</{name}>" for name, text in others.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{rest}<RequestId>REQ1</RequestId></Error>'.encode()


class Canned:
    """A server that gives what ``answer(asked)`` returns, status, headers and content, and keeps what it was asked."""

    def __init__(self, answer, tls=None):
        self.answer = answer
        self.asked = []
        canned = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                path, _, query = self.path.partition("?")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, path, query, {name.lower(): value for name, value in self.headers.items()}, body)
                canned.asked.append(asked)
                status, headers, content = canned.answer(asked)
                self.send_response(status)
                headers = {"Content-Length": str(len(content)), "x-amz-request-id": "REQ1", **headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def handle_expect_100(self):
                if canned.refusal is None:
                    return super().handle_expect_100()
                self.send_response(canned.refusal[0])
                self.send_header("Content-Length", str(len(canned.refusal[1])))
                self.end_headers()
                self.wfile.write(canned.refusal[1])
                return False

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

            def log_message(self, *_):
                pass

            def date_time_string(self, timestamp=None):
                return canned.date or super().date_time_string(timestamp)

        self.date = ""
        self.refusal = None  # status and content for who asks whether it may send a body
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
