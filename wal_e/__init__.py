"""Continuous archiving of PostgreSQL: base backups and WAL, to a store and back."""

__version__ = "2.0.0.dev0"
