"""Coloured shapes: scenes drawn by program, their captions, and a program that checks a picture against its scene."""
