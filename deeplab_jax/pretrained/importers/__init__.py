"""One importer per project whose weights can be read."""
