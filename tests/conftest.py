from __future__ import annotations

import logging
import os

import pytest
from hypothesis import HealthCheck, settings

from wal_e import log

pytest_plugins = ["fix_postgres", "fix_archive", "fix_original", "fix_memory"]

settings.register_profile("wal-e", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure
settings.load_profile("wal-e")


@pytest.fixture(autouse=True)
def _fresh_log(monkeypatch):
    """Each test's records go to its own stderr, and no developer's variables come in."""
    monkeypatch.setattr(log, "_root", None)
    monkeypatch.setattr(log, "_secrets", set())
    logging.getLogger("wal_e").handlers.clear()
    for name in list(os.environ):
        if name.startswith(("WALE_", "PG")):
            monkeypatch.delenv(name)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="long; runs with --slow"))
