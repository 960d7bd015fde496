"""Devices and processes: the mesh, sharding rules, the halo check, multi-process runs, and the launcher."""
