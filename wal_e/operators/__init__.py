"""Floor 4: the verbs. One module per command, its phases in reading order."""
