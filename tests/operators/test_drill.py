"""The scratch directory of a drill, and the configuration of its server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from wal_e.errors import LocalFileError
from wal_e.operators.drill_scratch import KEEP, REMOVE, Configuration, scratch
from wal_e.postgres.programs import Programs

RECOVERY = Configuration("wal-e wal-fetch '%f' %p", {"recovery_target_name": "it's"}, {"work_mem": "1MB"}, 5999)


def configured(place, major=15, minor=20, configuration=RECOVERY):
    """A launch on a directory that came from a standby, and what was written for it."""
    data = Path(place.data)
    data.mkdir()
    for name in ("standby.signal", "recovery.conf"):
        (data / name).write_text("standby_mode = on\n")
    (data / "postgresql.auto.conf").write_text("primary_conninfo = 'host=production'\n")
    launch = place.launch(Programs("/bin", major, minor), configuration, {"PATH": "/bin"})
    return launch, Path(launch.settings["config_file"]).read_text()


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(dir="/tmp") as short, scratch(short, REMOVE) as place:  # the path of a socket is limited
        yield place


def test_the_server_can_do_nothing_to_others_whatever_its_files_say(place):
    launch, text = configured(place, configuration=RECOVERY._replace(settings={"archive_mode": "on", "listen_addresses": "*"}))
    assert launch.settings.items() >= {"archive_mode": "off", "listen_addresses": "", "max_logical_replication_workers": "0", "max_wal_senders": "0"}.items()
    assert "primary_conninfo" not in text + (Path(place.data) / "postgresql.auto.conf").read_text()
    assert launch.life == "tied"
    assert launch.environ["WALE_LOG_DESTINATION"] == "stderr"


def test_libraries_are_loaded_when_that_is_asked_for(place):
    launch, _ = configured(place, configuration=RECOVERY._replace(settings={"shared_preload_libraries": "auto_explain"}))
    assert launch.settings["shared_preload_libraries"] == "auto_explain"


def test_from_12_on_recovery_is_told_by_settings_and_a_signal_file(place):
    _, text = configured(place)
    assert "restore_command = 'wal-e wal-fetch ''%f'' %p'\n" in text
    assert "recovery_target_name = 'it''s'\n" in text
    assert "work_mem = '1MB'\n" in text
    assert f"unix_socket_directories = '{place.path}'\nport = '5999'\n" in text
    assert {path.name for path in Path(place.data).iterdir()} == {"recovery.signal", "postgresql.auto.conf"}


def test_before_12_recovery_is_told_by_a_file_of_its_own(place):
    _, text = configured(place, major=11, minor=22)
    assert "restore_command" not in text
    assert (Path(place.data) / "recovery.conf").read_text() == "restore_command = 'wal-e wal-fetch ''%f'' %p'\nrecovery_target_name = 'it''s'\n"


@pytest.mark.parametrize(("major", "minor", "known"), [(10, 21, False), (10, 22, True), (14, 4, False), (14, 5, True), (15, 0, True), (18, 4, True)])
def test_in_place_tablespaces_are_allowed_where_the_server_knows_them(place, major, minor, known):
    assert ("allow_in_place_tablespaces" in configured(place, major, minor)[1]) == known


def test_a_directory_is_removed_or_kept_as_is_asked(tmp_path):
    with scratch(str(tmp_path), REMOVE) as place:
        configured(place)
    assert list(tmp_path.iterdir()) == []
    with scratch(str(tmp_path), KEEP) as place:
        configured(place)
    assert [str(path) for path in tmp_path.iterdir()] == [place.path]


def test_an_error_removes_the_directory_too(tmp_path):
    with pytest.raises(RuntimeError), scratch(str(tmp_path), REMOVE):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_socket_goes_elsewhere_when_the_path_is_too_long_for_it(tmp_path):
    parent = tmp_path / ("d" * 100)
    parent.mkdir()
    with scratch(str(parent), REMOVE) as place:
        sockets = Path(re.search(r"unix_socket_directories = '(.*)'", configured(place)[1])[1])
        assert sockets.parent == Path("/tmp")
        assert sockets.is_dir()
    assert not sockets.exists()


def test_a_parent_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(LocalFileError, match="nowhere"), scratch(str(tmp_path / "nowhere"), REMOVE):
        pass


def test_a_prefetch_that_still_works_there_is_waited_for(tmp_path):
    with scratch(str(tmp_path), REMOVE) as place:
        lock = Path(place.data) / "pg_wal" / ".wal-e" / "prefetch.lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        flock = shutil.which("flock")
        assert flock
        holder = subprocess.Popen([flock, lock, "sh", "-c", f"echo; sleep 0.5; test -e {lock}"], stdout=subprocess.PIPE)
        holder.stdout.readline()
    assert holder.wait(10) == 0
    holder.stdout.close()
    assert os.listdir(tmp_path) == []
