"""Draws pictures and codes from a prompt: `python generate.py --help`."""

import sys

from dalle3.cli import main

sys.exit(main(["generate", *sys.argv[1:]]))
