"""Turns codes into full-quality pictures: `python decode.py --help`."""

import sys

from dalle3.cli import main

sys.exit(main(["decode", *sys.argv[1:]]))
