"""Floor 1: keys to bytes and back. One module per store, one contract for all."""
