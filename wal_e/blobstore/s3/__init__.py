"""S3 and its clones."""
