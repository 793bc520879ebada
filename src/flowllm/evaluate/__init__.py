"""Evaluation of crystals: hull, validity, matching, and the metrics built on them."""
