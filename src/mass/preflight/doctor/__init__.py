"""Measure which parts of the meta-gradient engine are exact on a given model (`mass doctor MODEL`)."""

from mass.preflight.doctor.examine import examine
from mass.preflight.doctor.report import Check, Loaded, Reach, Report

__all__ = ["Check", "Loaded", "Reach", "Report", "examine"]
