"""What a network or a config costs: parameters, multiply-adds, memory, collectives, latency."""
