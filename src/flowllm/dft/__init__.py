"""Inputs and results of DFT codes, energy corrections, and reference entries."""
