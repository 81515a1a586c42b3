"""Floor 2: files of a cluster to tar partitions and back."""
