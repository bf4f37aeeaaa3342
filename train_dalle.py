"""Trains a DALLE on captioned pictures: `python train_dalle.py --help`; runs under `torchrun` and `deepspeed` too."""

import sys

from dalle3.cli import main

sys.exit(main(["train_dalle", *sys.argv[1:]]))
