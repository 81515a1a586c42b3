"""The command lines that PostgreSQL repeats for years, read without click.

An exact table of forms, nothing clever: ``[GLOBAL ...] wal-push PATH [-p N] [--no-rename]``, ``wal-fetch NAME PATH
[-p N]`` and ``wal-prefetch DIRECTORY NAME [-p N]``, with options anywhere after the verb.
Whatever is not in the table is left to click, which understands the same forms.
"""

from __future__ import annotations

from wal_e.record import NamedTuple

GLOBAL_FLAGS = ("--terse", "--aws-instance-profile")
GLOBAL_VALUES = (
    "--envdir", "--file-prefix", "--gs-prefix", "--s3-prefix", "--swift-prefix", "--wabs-prefix", "--gpg-key-id",
    "--aws-access-key-id", "--wabs-account-name",
)  # fmt: skip
SHORT = {"-k": "--aws-access-key-id", "-a": "--wabs-account-name"}
VERBS = {
    "wal-push": (1, "--pool-size", 32),
    "wal-fetch": (2, "--prefetch", 8),
    "wal-prefetch": (2, "--prefetch", 8),
}
FLAGS = {"wal-push": ("--no-rename",)}


class FastCommand(NamedTuple):
    """A parsed command line: verb, positionals, the verb's number, global options by field name, and the verb's flags."""

    verb: str
    positionals: tuple[str, ...]
    number: int
    options: dict[str, str]
    flags: tuple[str, ...] = ()


def parse(argv: list[str]) -> FastCommand | None:
    """Read a command line of the table; None for any other."""
    options: dict[str, str] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = SHORT.get(word, name)
        if word in GLOBAL_FLAGS:
            value = "1"
        elif name not in GLOBAL_VALUES or not (equals or rest):
            return None
        elif not equals:
            value = rest.pop(0)
        options[name.lstrip("-").replace("-", "_")] = value
    if not rest or rest[0] not in VERBS:
        return None
    verb = rest.pop(0)
    wanted, option, number = VERBS[verb]
    positionals, flags = [], []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            positionals.append(word)
            continue
        if word in FLAGS.get(verb, ()):
            flags.append(word)
            continue
        if word in ("-p", option) and rest:
            value = rest.pop(0)
        elif not (name == option and equals):
            if word[:2] != "-p":
                return None
            value = word[2:]
        if not value.isascii() or not value.isdigit():
            return None
        number = int(value)
    return FastCommand(verb, tuple(positionals), number, options, tuple(flags)) if len(positionals) == wanted else None
