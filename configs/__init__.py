"""The config of a run: the schema that nests the rooms' dataclasses, and the YAML groups."""
