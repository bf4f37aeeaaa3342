"""The `dalle3` command: `dalle3 <command>`, one module for each command.

A command's module offers `HELP` (one line), `add_arguments(parser)` and `run(args) -> int`, the exit code;
it is imported only when its command is called, so `dalle3 --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import dalle3

COMMANDS = {
    "generate": "draw pictures and codes from a prompt",
    "decode": "turn codes into full-quality pictures",
    "sheet": "put all pictures of a folder of outputs on one contact sheet",
    "inspect": "say what a checkpoint file is, without executing anything in it",
    "convert": "write any checkpoint as a dalle3 folder",
    "average": "write the mean of several trainings' weights",
    "pack": "put the parts of a model into one folder, small enough to ship",
    "train": "train a model on your own pictures",
    "encode": "turn a data set into shards of codes, to train a DALLE on",
    "evaluate": "measure a model on captioned pictures",
    "data": "look through a data set: sizes, captions, duplicates, broken files",
    "train_dalle": "train a DALLE by the flags of DALLE-pytorch's train_dalle.py",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 well, 1 partly, 2 a mistake of the user's, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        return _overview(argv)
    name = argv[0]
    command = importlib.import_module(f"dalle3.cli.{name}")
    parser = Parser(prog=f"dalle3 {name}", description=COMMANDS[name])
    command.add_arguments(parser)
    return _guarded(name, lambda: command.run(parser.parse_args(argv[1:])))


def _overview(argv: list[str]) -> int:
    parser = Parser(
        prog="dalle3",
        description="Open two-stage text-to-image.",
        epilog=_listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=dalle3.__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    if not argv:
        parser.print_help()
        return 0
    parser.parse_args(argv)
    return 0


def _listing() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(["commands:", *lines, "", "dalle3 <command> --help tells more."])


def _guarded(name: str, run) -> int:
    from dalle3.errors import Dalle3Error
    from diffusion.errors import DiffusionError

    try:
        code = run()
        sys.stdout.flush()
        return code
    except (Dalle3Error, DiffusionError) as error:
        print(f"dalle3 {name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; nothing more may be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of a path that was named: too long, not ours to look into, on a disk that fails
        if error.filename is None:
            raise
        print(f"dalle3 {name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dalle3 {name}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
