"""A Keystone that knows one user: a token of Swift's own authentication, handed out in Keystone's words, versions 2 and 3."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

EXPIRY = "2099-01-01T00:00:00.000000Z"


class FakeKeystone:
    """``url`` has no version; ``asked`` are the bodies of the requests; ``status`` is answered to all if it is not 200."""

    def __init__(self, storage_url, token, password):
        self.storage_url = storage_url
        self.token = token
        self.password = password
        self.asked = []
        self.status = 200
        self.url = ""

    def answer(self, path, body):
        """Status, headers and body for a request."""
        self.asked.append(body)
        given = json.dumps(body)
        if self.status != 200:
            return self.status, {"Retry-After": "3"}, {"error": {"message": "as told"}}
        if path not in ("/v2.0/tokens", "/v3/auth/tokens"):
            return 404, {}, {"error": {"message": "no such place"}}
        if json.dumps(self.password) not in given:
            return 401, {}, {"error": {"message": "The request you have made requires authentication."}}
        return self._version_2() if path.startswith("/v2.0") else self._version_3()

    def _version_2(self):
        endpoints = [
            {"region": region, "publicURL": url, "internalURL": url, "adminURL": url}
            for region, url in (("east", "http://127.0.0.1:9/wrong"), ("west", self.storage_url))
        ]
        token = {"id": self.token, "expires": EXPIRY, "tenant": {"id": "t1", "name": "project", "enabled": True}}
        user = {"id": "u1", "name": "user", "username": "user", "roles": [], "roles_links": []}
        catalogue = [{"type": "object-store", "name": "swift", "endpoints": endpoints, "endpoints_links": []}]
        return 200, {}, {"access": {"token": token, "user": user, "serviceCatalog": catalogue}}

    def _version_3(self):
        endpoints = [
            {"id": f"{region}-{interface}", "interface": interface, "region": region, "region_id": region, "url": url}
            for region, url in (("east", "http://127.0.0.1:9/wrong"), ("west", self.storage_url))
            for interface in ("public", "internal")
        ]
        domain = {"id": "default", "name": "Default"}
        token = {
            "methods": ["password"],
            "expires_at": EXPIRY,
            "issued_at": "2020-01-01T00:00:00.000000Z",
            "user": {"id": "u1", "name": "user", "domain": domain},
            "project": {"id": "t1", "name": "project", "domain": domain},
            "roles": [],
            "catalog": [{"type": "object-store", "name": "swift", "id": "s1", "endpoints": endpoints}],
        }
        return 201, {"X-Subject-Token": self.token}, {"token": token}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers, answer = self.server.keystone.answer(urlsplit(self.path).path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def keystone(storage_url, token, password):
    """Run it until the block ends."""
    fake = FakeKeystone(storage_url, token, password)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.keystone = fake
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
