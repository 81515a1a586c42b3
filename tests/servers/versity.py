"""versitygw, a real S3 server on a directory: it checks signatures, rights and checksums, and decides conditional writes atomically.

Seen of 1.8.0: ``If-None-Match: *`` counts on PUT and on CompleteMultipartUpload (412); ``If-Match`` on GET; ranges and 416; listings in byte
order, paged; CRC32C of whole objects and of parts (400 BadDigest when wrong); a wrong secret is 403 SignatureDoesNotMatch, an unknown
key 403 InvalidAccessKeyId, a missing right 403 AccessDenied (within DeleteObjects: an error of that key, under status 200).
Its limits: any region is accepted; keys are paths, so that ``a`` and ``a/b`` exclude each other (409 ExistingObjectIsDirectory), ``a//b`` is
``a/b``, and a component has at most 255 bytes; storage classes and encryption headers are taken and forgotten.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import server


class Endpoint(NamedTuple):
    url: str
    port: int
    program: Path
    access_key: str = "versity-access"
    secret_key: str = "versity-secret"
    region: str = "us-east-1"

    def add_user(self, access_key: str, secret_key: str) -> None:
        """Make an account that may do nothing until a bucket's policy names its access key as a principal."""
        root = ["--access", self.access_key, "--secret", self.secret_key, "--region", self.region, "--endpoint-url", self.url]
        user = ["--access", access_key, "--secret", secret_key, "--role", "user"]
        subprocess.run([self.program, "admin", *root, "create-user", *user], check=True, capture_output=True, timeout=30)


@contextlib.contextmanager
def running(directory: Path, tls: tuple[Path, Path] | None = None) -> Iterator[Endpoint]:
    """Run versitygw, with its data and its log in ``directory``; with a certificate and its key, it speaks TLS."""
    place = server.require("versitygw", "s3")
    places = {name: directory / "versity" / name for name in ("data", "meta", "accounts")}
    for each in places.values():
        each.mkdir(parents=True)
    port = server.free_port()
    endpoint = Endpoint(f"{'https' if tls else 'http'}://127.0.0.1:{port}", port, place / "bin/versitygw")
    keys = ["--access", endpoint.access_key, "--secret", endpoint.secret_key]
    argv = [endpoint.program, "--port", f"127.0.0.1:{port}", *keys, "--iam-dir", places["accounts"], "--keep-alive", "--quiet"]
    argv += ["--cert", tls[0], "--key", tls[1]] if tls else []
    argv += ["posix", *_metadata(places["meta"]), places["data"]]
    with server.process(argv, directory / "versity.log", server.answers_http(port, tls=tls and ssl.create_default_context(cafile=tls[0]))):
        yield endpoint


def _metadata(directory: Path) -> list[str | Path]:
    """Where its metadata go: into extended attributes, else beside the data."""
    try:
        os.setxattr(directory, "user.probe", b"")
    except OSError:
        return ["--sidecar", directory]
    return []
