"""The name under which the commands of this folder are called."""

PROGRAM = "python -m research"
