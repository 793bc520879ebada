"""One model per section of the configuration: no defaults, no unknown keys."""
