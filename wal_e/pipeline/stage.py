"""External codecs and ciphers: which program, which suffix, which first bytes.

A codec is marked by the suffix of the key (``.lzo``), as in WAL-E's layout 005. A cipher is
not marked there at all, so it is recognised by the first bytes of the object.

Sources: lzop 1.04 ``lzop.1`` and its file magic; RFC 9580 section 4.2 (OpenPGP packet headers).
"""

from __future__ import annotations

from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LZOP_MAGIC = b"\x89LZO\x00\r\n\x1a\n"


class Stage(NamedTuple):
    """One external program: what it appends to a key, what its output starts with, its two command lines."""

    name: str
    suffix: str
    recognises: Callable[[bytes], bool]
    encode: tuple[str, ...]
    decode: tuple[str, ...]


def _is_lzop(head: bytes) -> bool:
    return head.startswith(LZOP_MAGIC)


def _is_openpgp(head: bytes) -> bool:
    """A public-key encrypted session key packet (tag 1), old or new format."""
    return bool(head) and not _is_lzop(head) and (head[0] & 0xFC == 0x84 or head[0] == 0xC1)


LZOP = Stage("lzop", ".lzo", _is_lzop, ("lzop", "-c"), ("lzop", "-d", "-c"))

CODECS = {LZOP.suffix: LZOP}


def gpg(recipient: str = "") -> Stage:
    """The gpg stage that encrypts for a recipient; decryption finds its key by itself.

    Only the user's keyring is asked for the recipient, never the network, whose answer would be trusted.
    """
    quiet = ("gpg", "--batch", "--no-tty", "--quiet")
    encode = (*quiet, "--no-auto-key-locate", "--trust-model", "always", "--compress-level", "0", "--recipient", recipient, "--encrypt")
    return Stage("gpg", "", _is_openpgp, encode, (*quiet, "--decrypt"))
