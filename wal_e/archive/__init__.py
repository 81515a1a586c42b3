"""Floor 3: what a store holds: names, manifest, catalog, identity."""
