"""How Sphinx builds this documentation."""

from __future__ import annotations

import sys
from pathlib import Path

_here = Path(__file__).parent
sys.path[:0] = [str(_here), str(_here.parent)]

from wal_e import __version__  # noqa: E402  # found through the path above

project = "wal-e"
author = "wal-e contributors"
copyright = "2026, wal-e contributors"
release = version = __version__

extensions = ["generated"]
html_theme = "alabaster"
html_theme_options = {"page_width": "1080px", "sidebar_width": "240px", "description": "Continuous archiving for PostgreSQL"}
exclude_patterns = ["_build"]
nitpicky = True
