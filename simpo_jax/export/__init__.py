"""Weights out: a run's checkpoint as a Hugging Face folder, without devices."""
