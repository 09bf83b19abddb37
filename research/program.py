"""The name by which the commands of this folder are called."""

PROGRAM = "python -m research"
