"""Parquet shards: scanning, schema, gene index, streaming batches, preprocessing."""
