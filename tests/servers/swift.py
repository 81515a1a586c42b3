"""A real OpenStack Swift on one node, with its own simple authentication (version 1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import server


class Endpoint(NamedTuple):
    auth_url: str
    port: int
    user: str = "test:tester"
    key: str = "testing"
    reader: str = "test:reader"  # may do nothing until a container's X-Container-Read names it
    reader_key: str = "reading"


@contextlib.contextmanager
def running(directory: Path, *, max_file_size: int = 5 << 30) -> Iterator[Endpoint]:
    """Run Swift, with its data and its log in ``directory``; ``max_file_size`` in bytes is the largest object that is not an SLO."""
    place = server.require("swift", "swift")
    ports = [server.free_port() for _ in range(4)]
    node = Path(__file__).with_name("swift_node.py")
    argv = [place / "bin/python", "-P", node, directory / "swift", *ports, max_file_size]
    asked = [server.answers_http(port, "/healthcheck") for port in ports]
    with server.process(argv, directory / "swift.log", lambda: all(ask() for ask in asked)):
        yield Endpoint(f"http://127.0.0.1:{ports[0]}/auth/v1.0", ports[0])
