"""Engines that sample texts from a language model."""
