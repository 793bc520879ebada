"""FlowLLM: crystals from a language model, refined by Riemannian flow matching."""

__version__ = "0.1.0"
