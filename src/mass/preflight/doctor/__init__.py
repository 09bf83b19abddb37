"""Measure which parts of the meta-gradient engine are exact on a given model (`mass doctor MODEL`)."""

from mass.preflight.doctor.examine import examine
from mass.preflight.doctor.report import Check, DoctorReport, Loaded, Reach

__all__ = ["Check", "DoctorReport", "Loaded", "Reach", "examine"]
