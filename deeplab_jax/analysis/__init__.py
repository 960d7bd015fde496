"""The cost of a network or a config: parameters, multiply-adds, memory, collectives, latency."""
