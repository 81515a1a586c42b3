"""What configuration files say of other files, as the server reads them."""

import pytest

from wal_e.postgres.config_syntax import included_path, inclusions_in_rules, inclusions_in_settings, options_in, settings_in


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hba_file = '/etc/pg_hba.conf'", [("hba_file", "/etc/pg_hba.conf")]),
        ("HBA_File /etc/pg_hba.conf # why", [("hba_file", "/etc/pg_hba.conf")]),
        ("a='it''s' # x", [("a", "it's")]),
        (r"a='it\'s \\ \101\t'", [("a", "it's \\ A\t")]),
        ("plpgsql.check_asserts=off", [("plpgsql.check_asserts", "off")]),
        ("include 'ä b.conf'", [("include", "ä b.conf")]),
        ("a = '#no comment'", [("a", "#no comment")]),
        ("#include 'x'", []),
        ("", []),
        ("a =", []),
        ("a ''", [("a", "")]),
        ("= 'x'", []),
    ],
)
def test_a_line_of_settings(line, expected):
    assert list(settings_in(line)) == expected


def test_the_inclusions_of_settings_are_found_in_their_order():
    text = "include_dir 'conf.d'\nwork_mem = 4MB\nInclude_If_Exists='x'\ninclude y\n"
    assert list(inclusions_in_settings(text)) == [("include_dir", "conf.d"), ("include_if_exists", "x"), ("include", "y")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("local all @users trust", [("@", "users")]),
        ('local "a b",@dbs @"the users" trust', [("@", "dbs"), ("@", "the users")]),
        ('local all "@users" trust', []),
        ("local all me@here trust", []),
        ("local all @ trust", []),
        ("# local all @users trust", []),
        ("local all u trust # @users", []),
        ("include more.conf", [("include", "more.conf")]),
        ('include_dir "rules d"', [("include_dir", "rules d")]),
        ("include_if_exists x", [("include_if_exists", "x")]),
        ("local include all trust", []),
        ("local all \\\n @users trust", [("@", "users")]),
        ("include \\\n more.conf", [("include", "more.conf")]),
        ('local all "never ended @users', []),
    ],
)
def test_a_line_of_rules(line, expected):
    assert list(inclusions_in_rules(line)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("/usr/bin/postgres", {}),
        ('/usr/bin/postgres "-D" "/data"\n', {"-D": "/data"}),
        ('/p "-D" "/my data" "-c" "config_file=/e t/c.conf" "--hba-file=/h" "-p" "5432"\n', {"-D": "/my data", "config_file": "/e t/c.conf", "hba_file": "/h"}),
        ('/p "-c"', {}),
        ("not a command line", {}),
    ],
)
def test_the_words_that_a_server_was_started_with(text, expected):
    assert options_in(text) == expected


def test_a_path_counts_from_the_file_that_includes_it():
    assert included_path("conf.d/x", "/etc/pg/postgresql.conf") == "/etc/pg/conf.d/x"
    assert included_path("/x", "/etc/pg/postgresql.conf") == "/x"
