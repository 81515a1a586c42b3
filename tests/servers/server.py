"""What the servers of the tests have in common: where they are installed, how one is started, awaited and stopped.

script/test installs them and says where in ``WALE_TEST_SERVERS``. A server that could not be
installed has its tests skipped with the reason, unless ``WALE_TEST_REQUIRE`` (a comma list of
s3, gcs, azure, swift and postgresql: its major versions beside the installed one) names its
kind: then they fail. Both variables are read on import: no test sees ``WALE_*`` variables of ours.

A server ends with its context manager, and with the process of the tests however that ends: the kernel sends it SIGKILL then.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_CLONE = Path(__file__).parents[2]
_DEFAULT = "/var/cache/wal-e-dev/servers" if os.geteuid() == 0 else _CLONE / ".cache/servers"
_INSTALLED = Path(os.environ.get("WALE_TEST_SERVERS") or _DEFAULT)
_REQUIRED = os.environ.get("WALE_TEST_REQUIRE", "").split(",")
_PATIENCE_S = {"start": 60, "stop": 5}
_PROCESSES = 4  # of tests at once, in script/test
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # each has ports of its own
_ports = random.sample(range(20000 + _process % _PROCESSES, 32000, _PROCESSES), 12000 // _PROCESSES)
_VERSIONS = dict(line.split("=") for line in (_CLONE / "tests/servers/versions").read_text().splitlines())


def require(name: str, kind: str) -> Path:
    """The directory in which a server is installed; skips or fails the test when it is not."""
    place = _INSTALLED / f"{name}-{_VERSIONS[name]}"
    if (place / ".done").exists():
        return place
    reason = Path(f"{place}.missing")
    why = reason.read_text(errors="replace")[-2000:].strip() if reason.exists() else "run script/test once, it installs what is missing"
    text = f"{place.name} is not installed: {why}"
    if kind in _REQUIRED:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, that no outgoing connection is given, and that we never gave before."""
    while True:
        port = _ports.pop()
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def process(argv: list, log: Path, answers: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it is entered when ``answers()`` is true. Its output goes to ``log``."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "LANG": "C.UTF-8"}
    with log.open("ab") as output:
        child = subprocess.Popen(
            # setpriv, and not preexec_fn, which is unsafe where there are threads
            ["setpriv", "--pdeathsig", "KILL", *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        _wait(child, log, answers)
        yield child
    finally:
        _stop(child)


def answers_http(port: int, path: str = "/", tls: ssl.SSLContext | None = None) -> Callable[[], bool]:
    """A question for ``process``: whether this port answers an HTTP request, be it with an error."""

    def ask() -> bool:
        host, timeout_s = "127.0.0.1", 5
        connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout_s, context=tls) if tls else http.client.HTTPConnection(host, port, timeout=timeout_s)
        )
        try:
            connection.request("GET", path)
            return connection.getresponse().status < 600
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ask


def _wait(child: subprocess.Popen[bytes], log: Path, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S["start"]
    while not answers():
        if child.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the server did not start (status {child.returncode}): {child.args}\n{log.read_text(errors='replace')}")
        time.sleep(0.02)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the process and its group: politely, then surely."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=_PATIENCE_S["stop"])
