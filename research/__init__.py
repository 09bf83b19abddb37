"""Everything that rebuilds our results page: bases, studies, stored results, the document."""

PROGRAM = "python -m research"
"""The command whose verbs are in `research.cli`."""
