"""Exact, counted evaluation."""
