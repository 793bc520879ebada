"""Interatomic potentials and the relaxation of crystals."""
