"""One task for each model that can be trained."""
