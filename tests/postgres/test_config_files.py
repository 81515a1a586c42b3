"""Which files of a configuration lie outside its data directory, and what cannot be taken."""

import os
import re

import pytest

from wal_e.errors import UsageError
from wal_e.postgres.config_files import MAX_FILE_BYTES, outside, places_of_stopped, read_configuration


class Layout:
    """A data directory, and a configuration beside it."""

    def __init__(self, root):
        self.data, self.etc = root / "data", root / "etc"
        self.data.mkdir()
        self.etc.mkdir()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
            (self.etc / name).write_text("")
        self.places = {
            f"{kind}_file": str(self.etc / name) for kind, name in (("config", "postgresql.conf"), ("hba", "pg_hba.conf"), ("ident", "pg_ident.conf"))
        }

    def write(self, **lines):
        for name, text in lines.items():
            (self.etc / f"{name}.conf").write_text(text)

    def read(self):
        return read_configuration(str(self.data), self.places)

    def names(self):
        return {os.path.relpath(file.path, self.etc) for file in self.read().files}


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path)


THREE = {"postgresql.conf", "pg_hba.conf", "pg_ident.conf"}


def test_files_are_kept_with_their_content_and_mode(layout):
    layout.write(pg_hba="local all all trust\n")
    (layout.etc / "pg_hba.conf").chmod(0o640)
    [hba] = [file for file in layout.read().files if file.path.endswith("pg_hba.conf")]
    assert (hba.content, hba.mode, hba.mtime) == (b"local all all trust\n", 0o640, int((layout.etc / "pg_hba.conf").stat().st_mtime))
    assert layout.read().places == layout.places


def test_all_that_is_included_comes_along_once_and_nothing_else(layout):
    (layout.etc / "conf.d" / "directory.conf").mkdir(parents=True)
    for name in ("b.conf", "a.conf", ".hidden.conf", "old.conf.bak"):
        (layout.etc / "conf.d" / name).write_text("")
    layout.write(
        postgresql="include_dir 'conf.d'\ninclude 'x.conf'\ninclude_if_exists 'y.conf'\nssl_key_file = 'server.key'\n", x="include 'postgresql.conf'\n"
    )
    layout.write(pg_hba="local all @users trust\nlocal all @absent trust\n")
    (layout.etc / "users").write_text("a\nb @more\n")
    (layout.etc / "more").write_text("@users")
    (layout.etc / "server.key").write_text("")
    assert layout.names() == {*THREE, "conf.d/a.conf", "conf.d/b.conf", "x.conf", "users", "more"}


def test_a_directory_that_is_included_comes_along_also_when_it_is_empty_and_not_when_it_lies_inside(layout):
    (layout.etc / "conf.d").mkdir()
    (layout.data / "inside").mkdir()
    (layout.data / "link").symlink_to(layout.etc / "conf.d")
    layout.write(postgresql=f"include_dir 'conf.d'\ninclude_dir '{layout.data}/inside'\ninclude_dir '{layout.data}/link'\n")
    assert layout.read().directories == [str(layout.etc / "conf.d")] * 2


def test_what_lies_in_the_data_directory_is_read_for_what_it_includes_and_not_kept(layout):
    (layout.data / "postgresql.conf").write_text(f"include '{layout.etc}/x.conf'\n")
    layout.write(x="")
    layout.places["config_file"] = str(layout.data / "postgresql.conf")
    assert layout.names() == {"pg_hba.conf", "pg_ident.conf", "x.conf"}
    assert layout.read().places["config_file"] == "postgresql.conf"


def test_a_link_out_of_the_data_directory_is_outside_and_one_into_it_is_inside(layout):
    (layout.data / "pg_hba.conf").symlink_to(layout.etc / "pg_hba.conf")
    (layout.data / "real.conf").write_text("")
    (layout.etc / "postgresql.conf").unlink()
    (layout.etc / "postgresql.conf").symlink_to(layout.data / "real.conf")
    layout.places["hba_file"] = str(layout.data / "pg_hba.conf")
    found = layout.read()
    assert [file.path for file in found.files] == [str(layout.etc / "pg_hba.conf"), str(layout.etc / "pg_ident.conf")]
    assert found.places == {**layout.places, "config_file": "real.conf", "hba_file": str(layout.etc / "pg_hba.conf")}
    assert outside(str(layout.data), layout.places) == [str(layout.etc / "pg_hba.conf"), str(layout.etc / "pg_ident.conf")]


def test_a_data_directory_that_is_named_by_a_link_is_the_same(layout, tmp_path):
    (tmp_path / "alias").symlink_to(layout.data)
    (layout.data / "postgresql.conf").write_text("")
    (layout.data / "pg_hba.conf").symlink_to(layout.etc / "pg_hba.conf")
    places = {"config_file": str(tmp_path / "alias" / "postgresql.conf"), "hba_file": str(tmp_path / "alias" / "pg_hba.conf")}
    assert [file.path for file in read_configuration(str(layout.data), places).files] == [str(layout.etc / "pg_hba.conf")]


def test_a_server_without_pg_ident_has_a_whole_configuration(layout):
    (layout.etc / "pg_ident.conf").unlink()
    assert layout.names() == THREE - {"pg_ident.conf"}
    assert "ident_file" not in layout.read().places


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("include 'absent.conf'", "absent.conf"),
        ("include_dir 'absent'", "absent"),
        ("include '/dev/zero'", "/dev/zero"),
        ("include 'fifo'", "fifo"),
        ("include 'directory'", "directory"),
        ("include 'large'", "large"),
        ("include '/proc/self/io'", "It changes while it is read"),  # what is read is counted there
        ("include 'in\\000valid'", "null byte"),
    ],
)
def test_what_cannot_be_taken_is_named(layout, line, named):
    os.mkfifo(layout.etc / "fifo")
    (layout.etc / "directory").mkdir()
    (layout.etc / "large").touch()
    os.truncate(layout.etc / "large", MAX_FILE_BYTES + 1)
    layout.write(postgresql=f"{line}\n")
    said = refused(layout)
    assert named in said
    assert "--include-config" in said


def refused(layout):
    with pytest.raises(UsageError) as caught:
        layout.read()
    return f"{caught.value} {caught.value.hint}"


def test_a_file_that_vanished_since_the_server_was_asked_is_named(layout):
    (layout.etc / "pg_hba.conf").unlink()
    assert str(layout.etc / "pg_hba.conf") in refused(layout)


def test_a_chain_without_an_end_is_refused(layout):
    for number in range(20):
        layout.write(**{f"x{number}": f"include 'x{number + 1}.conf'\n"})
    layout.write(postgresql="include 'x0.conf'\n")
    assert "too many files" in refused(layout)


def test_a_stopped_server_is_found_by_its_last_command_line(layout):
    (layout.data / "postmaster.opts").write_text(f'/usr/bin/postgres "-D" "{layout.data}" "-c" "config_file={layout.etc}/postgresql.conf"\n')
    (layout.etc / "more.conf").write_text(f"hba_file = '{layout.etc}/rules'\n")
    layout.write(postgresql=f"hba_file = '/elsewhere'\ninclude 'more.conf'\nident_file = '{layout.etc}/pg_ident.conf'\n")
    assert places_of_stopped(str(layout.data)) == {**layout.places, "hba_file": f"{layout.etc}/rules"}
    (layout.data / "postgresql.auto.conf").write_text(f"hba_file = '{layout.etc}/auto'\n")
    assert places_of_stopped(str(layout.data))["hba_file"] == f"{layout.etc}/auto"
    with (layout.data / "postmaster.opts").open("w") as stream:
        stream.write(f'/usr/bin/postgres "-D" "{layout.etc}" "--hba-file={layout.etc}/given"\n')
    assert places_of_stopped(str(layout.data)) == {**layout.places, "hba_file": f"{layout.etc}/given"}


def test_a_server_that_never_ran_has_its_configuration_in_the_data_directory(layout):
    (layout.data / "postgresql.conf").write_text("")
    assert places_of_stopped(str(layout.data)) == {name: str(layout.data / os.path.basename(place)) for name, place in layout.places.items()}


@pytest.mark.parametrize("opts", [None, '/usr/bin/postgres "-c" "config_file=relative.conf"\n', '/usr/bin/postgres "-c" "config_file=/absent"\n'])
def test_where_nothing_tells_where_the_configuration_is_that_is_an_error(layout, opts):
    if opts:
        (layout.data / "postmaster.opts").write_text(opts)
    with pytest.raises(UsageError, match=re.escape("cannot be found")):
        places_of_stopped(str(layout.data))


def test_a_relative_path_of_a_stopped_server_is_refused_for_it_counts_from_an_unknown_place(layout):
    (layout.data / "postgresql.conf").write_text("hba_file = 'rules'\n")
    with pytest.raises(UsageError, match="relative path"):
        places_of_stopped(str(layout.data))
