"""Building blocks with state; no block knows a modality, a loss or a sampler."""
