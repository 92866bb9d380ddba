"""Pipelines: a tokenizer and a generator as one callable."""
