"""From classes to pictures."""
