"""Caches of codes, in shards, of pictures and of speech."""
