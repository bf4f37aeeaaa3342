"""Captioned pictures from folders, tars and lists, in an order that is a function of (seed, epoch) alone."""
