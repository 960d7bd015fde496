"""Exact, counted evaluation: the evaluator, the step, metrics and reports."""
