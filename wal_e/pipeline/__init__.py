"""Floor 2: bytes through codec and cipher processes, in parallel lanes."""
