"""Sweeps: many points, each a run of its own with a launch of its own."""
