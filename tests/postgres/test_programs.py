"""Where PostgreSQL's programs are found, and what their version means."""

from __future__ import annotations

import pytest

from wal_e.errors import ToolMissing
from wal_e.postgres.programs import Programs, find_programs, in_place_settings

IN_PLACE = {"allow_in_place_tablespaces": "on"}


@pytest.fixture
def install(tmp_path):
    """Make a directory with a server of a version in it."""

    def make(name, says):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "postgres").write_text(f"#!/bin/sh\necho '{says}'\n")
        (directory / "postgres").chmod(0o755)
        return directory

    return make


def test_a_server_is_taken_by_its_major_version(install, monkeypatch):
    places = [
        install("old", "postgres (PostgreSQL) 9.6.24"),
        install("ten", "postgres (PostgreSQL) 10.21"),
        install("beta", "postgres (PostgreSQL) 99beta1 (Debian)"),
    ]
    monkeypatch.setenv("PATH", f"{':'.join(map(str, places))}:/usr/bin:/bin")
    assert find_programs(10) == Programs(str(places[1]), 10, 21)
    assert find_programs(99) == Programs(str(places[2]), 99, 0)


def test_where_one_was_looked_for_is_told(install):
    directory = install("ten", "postgres (PostgreSQL) 10.21")
    with pytest.raises(ToolMissing, match=rf"there is no server of PostgreSQL 42\. .*{directory} has 10\.21"):
        find_programs(42, str(directory))


def test_a_link_on_the_path_leads_to_the_neighbours_of_the_server(install, monkeypatch, tmp_path):
    directory = install("ten", "postgres (PostgreSQL) 10.21")
    links = tmp_path / "links"
    links.mkdir()
    (links / "postgres").symlink_to(directory / "postgres")
    monkeypatch.setenv("PATH", f"{links}:/usr/bin:/bin")
    assert find_programs(10).directory == str(directory)


def test_directories_in_pg_tblspc_need_a_setting_where_the_server_knows_it(install):
    assert in_place_settings(10, str(install("before", "postgres (PostgreSQL) 10.21"))) == {}
    assert in_place_settings(10, str(install("since", "postgres (PostgreSQL) 10.22"))) == IN_PLACE
    assert in_place_settings(10, "/nowhere") == IN_PLACE
