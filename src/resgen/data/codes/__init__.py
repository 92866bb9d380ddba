"""Caches of codes, in shards, of images and of speech."""
