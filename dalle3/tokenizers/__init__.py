"""Text tokenizers: a caption becomes the ids its model was trained on."""
