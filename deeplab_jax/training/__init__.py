"""Training: the loop, the step, its state and optimizer, initialization and distillation."""
