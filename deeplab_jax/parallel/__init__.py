"""Devices and processes: the mesh, sharding rules, the halo check, and the launcher."""
