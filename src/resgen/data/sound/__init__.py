"""Sound: recordings with texts and speakers, one at a time or all at once, and spectrograms."""
