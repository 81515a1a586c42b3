"""Floor 1: the cluster, its files, its formats and its SQL."""
