"""Reading and writing of artefacts."""
