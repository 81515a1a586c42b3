from __future__ import annotations

import pytest
from hypothesis import settings

pytest_plugins = ["fix_postgres", "fix_archive", "fix_original", "fix_memory"]

settings.register_profile("wal-e", deadline=None)  # a busy machine is not a failure
settings.load_profile("wal-e")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="long; runs with --slow"))
