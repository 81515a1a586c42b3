"""Azurite, which plays Azure Blob storage with its own public account and key.

It knows staged blocks, conditional writes, tiers (a blob in the Archive tier answers 409 BlobArchived), SAS and wrong keys (403).
The flag about versions: the client library speaks a newer version of the protocol than Azurite has heard of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import server


class Endpoint(NamedTuple):
    url: str  # the account is in its path
    port: int
    account: str = "devstoreaccount1"
    key: str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # published with Azurite

    @property
    def connection_string(self) -> str:
        return f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.url};"


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Endpoint]:
    """Run Azurite's blob server, with its data and its log in ``directory``."""
    place = server.require("azurite", "azure")
    port = server.free_port()
    program = place / "node_modules/azurite/dist/src/blob/main.js"
    options = ["--location", directory / "azurite", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    argv = [place / "bin/node", program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]
    with server.process(argv, directory / "azurite.log", server.answers_http(port)):
        yield Endpoint(f"http://127.0.0.1:{port}/devstoreaccount1", port)
