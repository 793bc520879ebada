"""The configuration: one model per section, the stages, and the loading of files."""
