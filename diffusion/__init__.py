"""A small, pure diffusion library: it knows tensors and callables, never codes, captions or CLIP."""
