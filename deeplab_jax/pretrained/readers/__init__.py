"""One reader per file format, without the framework that wrote it."""
