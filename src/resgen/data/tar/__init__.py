"""Tar shards by index."""
