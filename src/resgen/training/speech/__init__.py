"""How speech models are trained."""
