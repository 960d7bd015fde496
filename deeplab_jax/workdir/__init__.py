"""The files of a training run: layout and lock, checkpoints, and the metrics log."""
