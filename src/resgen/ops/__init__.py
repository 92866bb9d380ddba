"""Pure functions on tensors: the method's mathematics without state, devices or global randomness."""
