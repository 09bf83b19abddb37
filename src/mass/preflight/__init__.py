"""Checks before a run: whether meta-gradients are exact on a model (doctor), and what a run would need (dryrun)."""
