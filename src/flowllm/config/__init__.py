"""The configuration: one model per section, the stages, and how files are loaded."""
