"""Zeroth-order fine-tuning of language models that are larger than GPU memory."""
