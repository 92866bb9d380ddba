"""How image models are trained."""
