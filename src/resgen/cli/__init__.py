"""The command line, one small file per command; nothing here imports torch before a command runs."""
