"""Studies of speech."""
