"""Policies: what drives whole runs of the loop from the host. One file each; `core.registry`."""
