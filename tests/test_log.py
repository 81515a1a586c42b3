"""Log records: WAL-E's layout, on stderr, lazily, and without secrets."""

import re
import subprocess
import sys
import textwrap


def run(body, **environ):
    script = "from wal_e import log\nfrom wal_e.errors import UsageError\nfrom wal_e.settings import Settings\nimport os, sys\n" + textwrap.dedent(body)
    environ = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin", "WALE_LOG_DESTINATION": "stderr", **environ}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return done


SET_UP = "log.configure(Settings(os.environ), 'info')\n"


def test_a_record_has_the_layout_that_people_grep_for():
    done = run(SET_UP + "log.Logger('wal_e.operators.backup_push').info('pushed', 'Two\\nlines.', 'A hint.', b=2, a=1)")
    stamp = r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}-00 pid=\d+"
    indent = " " * 8
    assert re.fullmatch(
        rf"wal_e.operator.backup_push INFO     MSG: pushed\n{indent}DETAIL: Two\n{indent}lines.\n{indent}HINT: A hint.\n{indent}STRUCTURED: {stamp} a=1 b=2\n",
        done.stderr,
    )
    assert done.stdout == ""


def test_an_error_carries_its_class_detail_and_hint():
    done = run(SET_UP + "log.Logger('wal_e.main').error(UsageError('wrong', 'Because.', 'Do this.'))")
    assert done.stderr.startswith("wal_e.main   ERROR    MSG: wrong\n        DETAIL: Because.\n        HINT: Do this.\n")
    assert "error=UsageError" in done.stderr


def test_levels_are_the_commands_unless_the_user_says_otherwise():
    body = "log.configure(Settings(os.environ), 'warning')\nlog.Logger('wal_e.x').info('quiet'); log.Logger('wal_e.x').warning('loud')"
    assert "quiet" not in run(body).stderr
    assert "loud" in run(body).stderr
    assert "quiet" in run(body, WALE_LOG_LEVEL="debug").stderr


def test_what_is_hidden_never_appears():
    done = run(SET_UP + "log.hide('s3cr3t-key')\nlog.Logger('wal_e.x').info('with s3cr3t-key', 'and s3cr3t-key.', key='s3cr3t-key')")
    assert "s3cr3t" not in done.stderr
    assert done.stderr.count("********") == 3


def test_nothing_to_say_costs_no_import():
    run("log.configure(Settings(os.environ), 'warning'); log.Logger('wal_e.x').info('quiet')\nassert 'logging' not in sys.modules")


def test_other_peoples_records_do_not_come_out_through_us():
    done = run(
        SET_UP + "import logging; logging.getLogger('urllib3').error('chatter'); log.Logger('wal_e.x').info('ours')\nlogging.getLogger('urllib3').info('more')"
    )
    assert "MSG: chatter" not in done.stderr


def test_a_closed_stderr_is_no_error():
    run(SET_UP + "sys.stderr.flush(); os.close(2); os.open('/dev/full', os.O_WRONLY)\nlog.Logger('wal_e.x').info('nobody reads this'); os._exit(0)")
