"""What the files of a server's configuration say of other files: read without a server.

Two grammars. ``postgresql.conf`` (``guc-file.l``): a setting a line, the value perhaps in quotes, where a quote is doubled or behind a
backslash. ``pg_hba.conf`` and ``pg_ident.conf`` (``hba.c``): words between blanks and commas, perhaps in double quotes; ``@FILE``
stands for the words in a file, and from 16 on a line of two words may include another file.
The server cannot be asked instead: ``pg_file_settings`` is for superusers, and lacks a file that only includes others.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

INCLUDE, INCLUDE_IF_EXISTS, INCLUDE_DIR, WORDS = "include", "include_if_exists", "include_dir", "@"

_DIRECTIVES = (INCLUDE, INCLUDE_IF_EXISTS, INCLUDE_DIR)
_SETTING = re.compile(r"\s*([^\W\d][\w$.]*)\s*(?:=\s*)?(?:'((?:[^'\\]|\\.|'')*)'|([^\s#'=][^\s#']*))")
_ESCAPE = re.compile(r"''|\\([0-7]{1,3}|.)", re.S)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORD = re.compile(r'#|((?:"[^"]*"?|[^\s,"#])+)')


def settings_in(text: str) -> Iterator[tuple[str, str]]:
    """The settings and inclusions of a ``postgresql.conf`` in their order: name in lower case, and value."""
    for line in text.splitlines():
        if found := _SETTING.match(line):
            name, quoted, plain = found.groups()
            yield name.lower(), plain if quoted is None else _ESCAPE.sub(_unescaped, quoted)


def inclusions_in_settings(text: str) -> Iterator[tuple[str, str]]:
    """The inclusions of a ``postgresql.conf``: how, and which path."""
    return ((name, value) for name, value in settings_in(text) if name in _DIRECTIVES)


def inclusions_in_rules(text: str) -> Iterator[tuple[str, str]]:
    """The inclusions of a ``pg_hba.conf``, a ``pg_ident.conf`` or a file of words: how, and which path."""
    for line in text.replace("\\\n", "").splitlines():
        words = list(_words(line))
        if len(words) == 2 and words[0] in _DIRECTIVES:
            yield words[0], _bare(words[1])
            continue
        for word in words:
            if word.startswith("@") and len(word) > 1:
                yield WORDS, _bare(word[1:])


def options_in(text: str) -> dict[str, str]:
    """The settings on the command line in a ``postmaster.opts``, and that of ``-D`` as ``-D``; every word but the first is in quotes there."""
    words = text.strip().removesuffix('"').split(' "')[1:]
    words = [word.removesuffix('"') for word in words]
    found: dict[str, str] = {}
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if word == "-D":
            found["-D"] = following
        name, equals, value = (following if word == "-c" else word.removeprefix("--") if word.startswith("--") else "").partition("=")
        if equals:
            found[name.replace("-", "_").lower()] = value
    return found


def included_path(path: str, by: str) -> str:
    """The absolute path of what a file includes: relative to its own directory."""
    return os.path.normpath(os.path.join(os.path.dirname(by), path))


def _unescaped(found: re.Match[str]) -> str:
    what = found[1]
    if what is None:
        return "'"
    return chr(int(what, 8) & 0xFF) if what.isdigit() and what < "8" else _ESCAPES.get(what, what)


def _words(line: str) -> Iterator[str]:
    for found in _WORD.finditer(line):
        if found[1] is None:
            return
        yield found[1]


def _bare(word: str) -> str:
    return word.replace('"', "")
