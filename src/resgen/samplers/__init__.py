"""Samplers: from a predictor to codes; no sampler knows a model class."""
