"""Checkpoint files: reading and writing, the published names, and the files of a run."""
