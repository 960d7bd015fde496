"""Fuzzing of every reader of files: `python -m tests.fuzz --inputs 10000` prints what happened."""
