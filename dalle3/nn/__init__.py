"""Leaves and wiring of transformers; nothing here has seen a configuration."""
