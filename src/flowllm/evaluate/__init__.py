"""Hull, validity, matching and the metrics built on them."""
