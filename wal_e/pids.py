"""Whether a process lives, by its number."""

from __future__ import annotations

import os


def is_running(pid: int) -> bool:
    """Whether there is a process with this number, ours or somebody else's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
