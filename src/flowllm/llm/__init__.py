"""The language-model half: crystal text, prompts, base models, fine-tuning data, engines."""
