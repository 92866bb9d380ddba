"""Tokenizers: signals to codes and back."""
