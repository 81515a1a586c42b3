"""Floor 5: command line and environment in; tables, JSON and exit status out."""
