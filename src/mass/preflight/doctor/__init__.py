"""A model's folder or hub name -> what of the meta-gradient engine is exact on it, measured: `mass doctor MODEL`."""

from mass.preflight.doctor.examine import examine
from mass.preflight.doctor.report import Check, Loaded, Reach, Report

__all__ = ["Check", "Loaded", "Reach", "Report", "examine"]
