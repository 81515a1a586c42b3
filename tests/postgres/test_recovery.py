from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import LocalFileError
from wal_e.postgres.recovery import RECOVERY, STANDBY, RecoveryAdvice, recovery_settings, render_advice, requested_role
from wal_e.postgres.recovery_files import Written, absent_configuration, write_recovery


def test_a_directory_without_signal_files_was_asked_for_nothing(tmp_path):
    assert requested_role(str(tmp_path)) is None
    assert requested_role(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    ("files", "role"), [(["recovery.signal"], "recovery"), (["standby.signal"], "standby"), (["recovery.signal", "standby.signal"], "standby")]
)
def test_the_signal_files_decide_and_standby_wins(tmp_path, files, role):
    for name in files:
        (tmp_path / name).touch()
    assert requested_role(str(tmp_path)) == role


@pytest.mark.parametrize(
    "line",
    [
        "standby_mode = on",
        "standby_mode = 'on'",
        "standby_mode='on'",
        "standby_mode on",
        "  standby_mode\t=\t'true'  # comment",
        "standby_mode = yes# comment",
        "standby_mode = 1",
        "STANDBY_MODE = 'ON'",
        "standby_mode = off\nstandby_mode = on",
        "restore_command = 'x'\r\nstandby_mode = on\r\n",
    ],
)
def test_recovery_conf_with_standby_mode_makes_a_standby(tmp_path, line):
    (tmp_path / "recovery.conf").write_text(f"# of the old kind\nrestore_command = 'cp \"%f\" %p'\n{line}\n", newline="")
    assert requested_role(str(tmp_path)) == "standby"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "#standby_mode = on",
        "  # standby_mode = on",
        "standby_mode = off",
        "standby_mode = 'off' # on",
        "standby_mode = # on",
        "standby_mode",
        "standby_mode = on\nstandby_mode = off",
        "standby_modes = on",
        "my.standby_mode = on",
        "restore_command = 'standby_mode = on'",
        "recovery_target_name = 'on'",
    ],
)
def test_recovery_conf_without_standby_mode_recovers(tmp_path, line):
    (tmp_path / "recovery.conf").write_text(f"restore_command = 'cp \"%f\" %p'\n{line}\n")
    assert requested_role(str(tmp_path)) == "recovery"


def test_a_leftover_recovery_conf_does_not_hide_a_standby_signal(tmp_path):
    (tmp_path / "recovery.conf").write_text("restore_command = 'x'\n")
    (tmp_path / "standby.signal").touch()
    assert requested_role(str(tmp_path)) == "standby"


def test_a_recovery_conf_in_another_encoding_is_read(tmp_path):
    (tmp_path / "recovery.conf").write_bytes(b"# f\xfcr uns\nstandby_mode = on\n")
    assert requested_role(str(tmp_path)) == "standby"


def test_a_recovery_conf_that_cannot_be_read_says_nothing(tmp_path):
    (tmp_path / "recovery.conf").mkdir()
    assert requested_role(str(tmp_path)) is None
    (tmp_path / "recovery.signal").touch()
    assert requested_role(str(tmp_path)) == "recovery"


@pytest.mark.parametrize("major", [12, 15, 18])
def test_from_12_on_a_signal_file_and_ordinary_settings_start_the_recovery(major):
    assert recovery_settings(major, 'wal-e wal-fetch "%f" "%p"') == RecoveryAdvice(
        signal_file="recovery.signal",
        settings_file="postgresql.auto.conf",
        settings="restore_command = 'wal-e wal-fetch \"%f\" \"%p\"'\nrecovery_target_timeline = 'latest'\n",
    )


@pytest.mark.parametrize("major", [10, 11])
def test_before_12_recovery_conf_holds_everything(major):
    assert recovery_settings(major, "x %f %p") == RecoveryAdvice("", "recovery.conf", "restore_command = 'x %f %p'\n")


def test_a_restore_command_is_quoted_for_the_configuration_file():
    settings = recovery_settings(15, "sh -c 'a\\b'\n").settings
    assert settings.startswith("restore_command = 'sh -c ''a\\\\b''\\n'\n")


def test_the_advice_from_12_on_reads_as_two_commands():
    assert render_advice(recovery_settings(15, "wal-e wal-fetch %f %p"), "/var/lib/pg data") == (
        "cat >> '/var/lib/pg data/postgresql.auto.conf' <<'EOF'\n"
        "restore_command = 'wal-e wal-fetch %f %p'\n"
        "recovery_target_timeline = 'latest'\n"
        "# recovery_target_time = '2001-02-03 04:05:06+00'  # optional: stop there; with the time zone's offset\n"
        "EOF\n"
        "touch '/var/lib/pg data/recovery.signal'\n"
    )


@given(
    st.sampled_from([11, 15]),
    st.text(st.sampled_from("aE'\"\\$`%!#\n "), max_size=20).map(lambda text: "wal-e " + text),
)
def test_a_shell_writes_exactly_the_advised_settings(tmp_path_factory, major, command):
    target = tmp_path_factory.mktemp("a 'quoted' $HOME\nplace")
    advice = recovery_settings(major, command)
    (target / "recovery.conf").write_text("standby_mode = on\n")
    (target / "postgresql.auto.conf").write_text("shared_buffers = 1MB\n")
    subprocess.run(["/bin/sh", "-eu"], input=render_advice(advice, str(target)), text=True, check=True)
    written = (target / advice.settings_file).read_text()
    lines = [line + "\n" for line in written.splitlines() if not line.startswith("#")]
    assert "".join(lines) == ("" if major < 12 else "shared_buffers = 1MB\n") + advice.settings
    assert (target / "recovery.signal").exists() == (major >= 12)


def test_a_backups_old_recovery_conf_does_not_keep_a_restored_cluster_a_standby(tmp_path):
    (tmp_path / "recovery.conf").write_text("standby_mode = on\n")
    subprocess.run(["/bin/sh", "-eu"], input=render_advice(recovery_settings(11, "x"), str(tmp_path)), text=True, check=True)
    assert requested_role(str(tmp_path)) == "recovery"


@pytest.mark.parametrize(
    ("major", "role", "advice"),
    [
        (15, RECOVERY, ("recovery.signal", "postgresql.auto.conf", "")),
        (15, STANDBY, ("standby.signal", "postgresql.auto.conf", "")),
        (11, RECOVERY, ("", "recovery.conf", "")),
        (11, STANDBY, ("", "recovery.conf", "standby_mode = 'on'\n")),
    ],
)
def test_targets_and_the_role_are_told_in_the_words_of_the_version(major, role, advice):
    settings = "restore_command = 'x'\nrecovery_target_name = 'it''s \\\\ here'\n"
    assert recovery_settings(major, "x", {"recovery_target_name": "it's \\ here"}, role) == advice[:2] + (advice[2] + settings,)


def write(directory, major=15, role=RECOVERY, targets=None, **options):
    return write_recovery(str(directory), recovery_settings(major, "wal-e %f %p", targets or {}, role), role, **options)


LEFTOVERS = """# Do not edit this file manually!
work_mem = '8MB'
recovery_target_time = '2001-02-03 04:05:06+00'
Recovery_Target_Action 'promote'
restore_command = 'cp it'
primary_conninfo = 'host=there'
primary_slot_name = 'mine'
recovery_min_apply_delay = '1h'
archive_cleanup_command = 'rm -r %r'
#recovery_target_xid = '5'
maintenance_work_mem = '1GB'"""


def test_what_was_in_the_file_stays_but_for_what_concerns_recovery(tmp_path):
    (tmp_path / "postgresql.auto.conf").write_text(LEFTOVERS)
    written = write(tmp_path, targets={"recovery_target_timeline": "current"})
    assert (tmp_path / "postgresql.auto.conf").read_text() == (
        "# Do not edit this file manually!\nwork_mem = '8MB'\n#recovery_target_xid = '5'\nmaintenance_work_mem = '1GB'\n"
        "restore_command = 'wal-e %f %p'\nrecovery_target_timeline = 'current'\n"
    )
    assert written.removed == (
        "recovery_target_time",
        "recovery_target_action",
        "restore_command",
        "primary_conninfo",
        "primary_slot_name",
        "recovery_min_apply_delay",
        "archive_cleanup_command",
    )
    assert requested_role(str(tmp_path)) == RECOVERY


def test_a_standby_keeps_where_its_primary_is(tmp_path):
    (tmp_path / "postgresql.auto.conf").write_text(LEFTOVERS)
    (tmp_path / "recovery.signal").touch()
    written = write(tmp_path, role=STANDBY)
    text = (tmp_path / "postgresql.auto.conf").read_text()
    assert "primary_conninfo = 'host=there'\nprimary_slot_name = 'mine'\n" in text
    assert "recovery_target_time" not in text
    assert written.files == ("recovery.signal",)
    assert requested_role(str(tmp_path)) == STANDBY


def test_a_target_in_postgresql_conf_is_overruled(tmp_path):
    (tmp_path / "postgresql.conf").write_text("recovery_target_time = '2001-01-01'\nrecovery_target_lsn = '0/1'\n#recovery_target_name = 'x'\n")
    written = write(tmp_path, targets={"recovery_target_lsn": "0/AA"})
    assert written.emptied == ("recovery_target_time",)
    assert (tmp_path / "postgresql.auto.conf").read_text().endswith("recovery_target_lsn = '0/AA'\nrecovery_target_time = ''\n")


def test_files_of_another_role_and_of_older_versions_go(tmp_path):
    for name in ("standby.signal", "recovery.conf"):
        (tmp_path / name).touch()
    assert write(tmp_path) == Written((), (), ("standby.signal", "recovery.conf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["postgresql.auto.conf", "recovery.signal"]


def test_before_12_a_recovery_conf_is_written_anew(tmp_path):
    (tmp_path / "recovery.conf").write_text("standby_mode = 'on'\nprimary_conninfo = 'host=there'\nrecovery_target_xid = '7'\n")
    (tmp_path / "postgresql.auto.conf").write_text("work_mem = '8MB'\n")
    write(tmp_path, major=11)
    assert (tmp_path / "recovery.conf").read_text() == "restore_command = 'wal-e %f %p'\n"
    assert (tmp_path / "postgresql.auto.conf").read_text() == "work_mem = '8MB'\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["postgresql.auto.conf", "recovery.conf"]


def test_before_12_a_standby_keeps_where_its_primary_is(tmp_path):
    (tmp_path / "recovery.conf").write_text("standby_mode = 'on'\nprimary_conninfo = 'host=there'\nrecovery_target_xid = '7'")
    write(tmp_path, major=11, role=STANDBY)
    assert (tmp_path / "recovery.conf").read_text() == "primary_conninfo = 'host=there'\nstandby_mode = 'on'\nrestore_command = 'wal-e %f %p'\n"


def test_a_file_in_another_encoding_keeps_its_bytes(tmp_path):
    (tmp_path / "postgresql.auto.conf").write_bytes(b"application_name = 'f\xfcr uns'\r\nrecovery_target_xid = '7'\r\n")
    write(tmp_path)
    assert (tmp_path / "postgresql.auto.conf").read_bytes() == b"application_name = 'f\xfcr uns'\r\nrestore_command = 'wal-e %f %p'\n"


def test_more_lines_can_be_asked_for(tmp_path):
    write(tmp_path, others="allow_in_place_tablespaces = 'on'\n")
    assert (tmp_path / "postgresql.auto.conf").read_text() == "restore_command = 'wal-e %f %p'\nallow_in_place_tablespaces = 'on'\n"


def test_before_12_what_is_no_setting_of_recovery_goes_where_it_is_understood(tmp_path):
    (tmp_path / "postgresql.auto.conf").write_text("work_mem = '8MB'")
    write(tmp_path, major=11, others="allow_in_place_tablespaces = 'on'\n")
    assert (tmp_path / "recovery.conf").read_text() == "restore_command = 'wal-e %f %p'\n"
    assert (tmp_path / "postgresql.auto.conf").read_text() == "work_mem = '8MB'\nallow_in_place_tablespaces = 'on'\n"


@pytest.mark.parametrize(("mode", "of_files"), [(0o700, 0o600), (0o750, 0o640)])
def test_files_can_be_read_by_whom_the_directory_lets_in(tmp_path, mode, of_files):
    tmp_path.chmod(mode)
    write(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {of_files}


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "postgresql.auto.conf").mkdir()
    with pytest.raises(LocalFileError, match=r"postgresql\.auto\.conf"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["postgresql.auto.conf"]


def test_configuration_that_is_absent_or_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "postgresql.conf").touch()
    (tmp_path / "pg_hba.conf").symlink_to("/nowhere/pg_hba.conf")
    assert absent_configuration(str(tmp_path)) == ("pg_hba.conf", "pg_ident.conf")
