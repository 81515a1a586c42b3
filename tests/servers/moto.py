"""moto, which plays S3 in memory: storage classes, Glacier's restores, encryption headers, versions, multipart, conditional writes.

It believes any signature and any Content-MD5, and reads a whole object for each range. What it does not check, versity.py does.
``POST /moto-api/reset`` empties it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import server


class Endpoint(NamedTuple):
    url: str
    port: int
    access_key: str = "moto-access"
    secret_key: str = "moto-secret"
    region: str = "us-east-1"


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Endpoint]:
    """Run moto, with its log in ``directory``."""
    place = server.require("moto", "s3")
    port = server.free_port()
    argv = [place / "bin/python", "-I", place / "bin/moto_server", "-H", "127.0.0.1", "-p", str(port)]
    with server.process(argv, directory / "moto.log", server.answers_http(port, "/moto-api/data.json")):
        yield Endpoint(f"http://127.0.0.1:{port}", port)
