"""Models that the package does not ship, by the folder of their base."""

from pathlib import Path

TINY = Path(__file__).with_name("tiny") / "base"
"""The base on which the update brings nothing; its checkpoints lie beside it (docs/shipped-models.md)."""
