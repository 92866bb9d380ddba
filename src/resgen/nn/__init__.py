"""Building blocks with state; no block knows a loss or a sampler."""
