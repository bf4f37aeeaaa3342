"""The networks: image tokenizers, the DALLE transformer and CLIP, each beside its configuration."""
