from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.postgres.recovery import RecoveryAdvice, recovery_settings, render_advice, requested_role


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
