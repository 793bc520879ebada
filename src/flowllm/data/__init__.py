"""Sources of crystals: fetching and checking them, and reading their rows."""
