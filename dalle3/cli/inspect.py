"""`dalle3 inspect FILE`: what a file is, what it holds and what it needs, without running anything in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle3.convert.report import report

HELP = "say what a checkpoint file is, without executing anything in it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the file and how to print it."""
    parser.add_argument("file", type=Path, help="a file or folder of weights, a .npy of codes or a PNG made by dalle3")
    parser.add_argument("--vqgan_config_path", type=Path, help="the yaml of a taming .ckpt, if it is not beside it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--keys", action="store_true", help="list every tensor")


def run(args: argparse.Namespace) -> int:
    """Prints the report of a file; 0 if it can be used, 1 if it can only be described.

    Raises:
        CheckpointError: the file is missing or broken, or of a kind nothing can be said about.
    """
    facts = report(args.file, config_path=args.vqgan_config_path, keys=args.keys)
    print(json.dumps(facts, indent=2, default=str) if args.json else "\n".join(_lines(facts)))
    return 1 if "problem" in facts else 0


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    width = max(len(name) for name in facts) + 2
    for name, fact in facts.items():
        label = name.replace("_", " ")
        if name == "keys":
            yield f"{label}:"
            yield from (f"  {key}  {kind} {tuple(shape)}" for key, (kind, shape) in fact.items())
        elif isinstance(fact, dict):
            yield f"{label}:"
            yield from (f"  {key}: {_show(key, value)}" for key, value in fact.items())
        elif isinstance(fact, list) and fact and isinstance(fact[0], str):
            yield f"{label}:"
            yield from (f"  {item}" for item in fact)
        else:
            yield f"{label:<{width}}{_show(name, fact)}"


def _show(name: str, value: Any) -> str:
    if name.startswith("bytes"):
        return _size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_show(key, inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
