"""Runs compression jobs: calibration, packing, evaluation. No HTTP code."""
