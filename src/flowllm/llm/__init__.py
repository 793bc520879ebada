"""The language model: crystal text, prompts, base models, fine-tuning and sampling."""
