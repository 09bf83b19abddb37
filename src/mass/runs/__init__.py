"""The folder of a run: its configuration, metrics, checkpoints, problems, and what it was made with."""
