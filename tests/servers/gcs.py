"""An emulator of Google Cloud Storage, in memory; what it knows stands in gcs_node.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import server


class Endpoint(NamedTuple):
    url: str  # for STORAGE_EMULATOR_HOST, or ``client_options={"api_endpoint": url}``
    port: int
    project: str = "tests"


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Endpoint]:
    """Run the emulator, with its log in ``directory``."""
    place = server.require("gcp-storage-emulator", "gcs")
    port = server.free_port()
    argv = [place / "bin/python", "-P", Path(__file__).with_name("gcs_node.py"), str(port)]
    with server.process(argv, directory / "gcs.log", server.answers_http(port)):
        yield Endpoint(f"http://127.0.0.1:{port}", port)
