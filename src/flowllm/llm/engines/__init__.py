"""Sampling engines: one interface, implemented with vLLM and with transformers."""
