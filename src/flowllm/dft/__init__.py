"""DFT inputs and outputs."""
