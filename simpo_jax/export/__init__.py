"""Exports a run's checkpoint as a Hugging Face folder, without an accelerator."""
