"""Where Google's credentials come from, in tests: the endpoint that sells tokens to service accounts, and a machine's metadata server.

The token is the account's name, the part before the @ of its address: gcs_node.py grants access by it. Nothing is verified.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_PROJECT = "tests"
_DEFAULT_ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"


class Endpoint(NamedTuple):
    port: int
    directory: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes a process believe that it runs on a machine of the cloud."""
        return {"GCE_METADATA_HOST": f"127.0.0.1:{self.port}", "GCE_METADATA_IP": f"127.0.0.1:{self.port}"}

    def key_file(self, account: str = "owner") -> Path:
        """Write the key file of a service account, for GOOGLE_APPLICATION_CREDENTIALS."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        content = {
            "type": "service_account",
            "project_id": _PROJECT,
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": _email(account),
            "token_uri": f"http://127.0.0.1:{self.port}/token",
        }
        path = self.directory / f"{account}.json"
        path.write_text(json.dumps(content))
        return path


@contextlib.contextmanager
def running(directory: Path, *, machine: str = "owner") -> Iterator[Endpoint]:
    """Answer for both; ``machine`` is the account of the machine. Key files go into ``directory``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.machine = machine
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Endpoint(server.server_port, directory)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        claims = form["assertion"][0].split(".")[1]
        issuer = json.loads(base64.urlsafe_b64decode(claims + "=="))["iss"]
        self.say(200, _token(issuer.split("@")[0]))

    def do_GET(self):
        machine = self.server.machine
        answers = {
            "/": {},
            "/computeMetadata/v1/project/project-id": _PROJECT,
            _DEFAULT_ACCOUNT: {"aliases": ["default"], "email": _email(machine), "scopes": ["https://www.googleapis.com/auth/cloud-platform"]},
            _DEFAULT_ACCOUNT + "token": _token(machine),
        }
        answer = answers.get(urllib.parse.urlsplit(self.path).path)
        if self.headers.get("Metadata-Flavor") != "Google":
            self.say(403, {})
        elif answer is None:
            self.say(404, {})
        else:
            self.say(200, answer)

    def say(self, status, value):
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def _email(account):
    return f"{account}@{_PROJECT}.iam.gserviceaccount.com"


def _token(account):
    return {"access_token": account, "expires_in": 3600, "token_type": "Bearer"}
