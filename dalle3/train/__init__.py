"""One loop for every trainable model; a task says what the numbers mean."""
