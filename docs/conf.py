"""How Sphinx builds this documentation."""

from __future__ import annotations

import re
from pathlib import Path

_source = (Path(__file__).parent.parent / "wal_e" / "__init__.py").read_text()

project = "wal-e"
author = "wal-e contributors"
copyright = "2026, wal-e contributors"
release = version = re.findall(r'__version__ = "(.+)"', _source)[0]

html_theme = "alabaster"
exclude_patterns = ["_build"]
nitpicky = True
