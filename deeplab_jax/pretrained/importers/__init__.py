"""Importers of foreign weights, one per project."""
