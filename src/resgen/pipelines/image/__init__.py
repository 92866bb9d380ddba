"""From classes to images."""
