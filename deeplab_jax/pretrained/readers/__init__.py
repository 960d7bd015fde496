"""Readers of weight files, one per file format. None needs the framework that wrote the file."""
