"""`dalle3 data check SOURCE...`: what a data set holds, and what in it cannot be trained on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from dalle3.cli.tasks import WordsConfig, read_or_train_words
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option, to_dict
from dalle3.data.check import LONG_SIDE, Together, examine, report
from dalle3.data.open import find_pictures
from dalle3.errors import ConfigError
from dalle3.models.dalle import DalleConfig

HELP = "look through a data set: sizes, captions, duplicates, broken files"
WIDTH = 14  # of the labels


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """How a data set is looked through."""

    wds: str = option("", help="of tars: the suffixes of picture and caption, as in --wds img,cap")
    num_workers: int = option(0, help="processes that share the work")
    named: int = option(10, help="broken samples and duplicates that are named; the others are counted")
    text_seq_len: int | None = option(None, help="caption tokens the model reads; captions with more are too long")

    def __post_init__(self) -> None:
        """Raises ConfigError for counts that cannot be."""
        for name, least in (("num_workers", 0), ("named", 0), ("text_seq_len", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` what can be done with data; so far, to check it."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    check = actions.add_parser("check", help=HELP, description=HELP)
    check.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of pictures with .txt beside them, a .jsonl, or tars like 'data/{00..09}.tar'; "
        "several are looked through as one, so that pictures in two of them are found",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    add_flags(check, CheckConfig, title="what is looked at")
    add_flags(check, WordsConfig, title="text; with one of these, or --text_seq_len, tokens are counted")


def run(args: argparse.Namespace) -> int:
    """Prints what the data set holds; 1 where a sample cannot be used or a caption is too long, else 0.

    Raises:
        Dalle3Error: there is nothing to look through.
    """
    config, words = from_args(CheckConfig, args), from_args(WordsConfig, args)
    found = [find_pictures(name, columns=config.wds, needs_captions=False) for name in args.sources]
    source = Together(found)
    counts_tokens = config.text_seq_len is not None or words != WordsConfig()
    tokenizer = read_or_train_words(words, source) if counts_tokens else None
    with tqdm(total=len(source), unit=" pictures", disable=not sys.stderr.isatty()) as bar:
        findings = examine(
            source, tokenizer=tokenizer, num_workers=config.num_workers, named=config.named, tick=bar.update
        )
    length = (config.text_seq_len or DalleConfig.text_seq_len) if counts_tokens else None
    facts = {
        "sources": [{"name": name, "pictures": len(part)} for name, part in zip(args.sources, found, strict=True)],
        **report(findings, source, text_seq_len=length, named=config.named),
    }
    print(json.dumps({**facts, "settings": to_dict(config)}, indent=2) if args.json else "\n".join(_lines(facts)))
    return 1 if findings.num_broken or facts.get("tokens", {}).get("too_long") else 0


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """A report for people."""
    broken, captions = facts["broken"], facts["captions"]
    yield f"pictures      {facts['pictures']:,} ({facts['bytes'] / 1e6:,.1f} MB)"
    yield from _listed("broken", broken["count"], "", broken["first"])
    several = f"{captions['pictures_with_several']:,} pictures have several (up to {captions['most']})"
    yield f"captions      {captions['count']:,}; {several}, {captions['pictures_with_none']:,} have none"
    yield from _spread_line("words", facts["words"])
    if tokens := facts.get("tokens"):
        yield from _spread_line("tokens", {name: tokens[name] for name in facts["words"]})
        over = f" of more than --text_seq_len {tokens['text_seq_len']} tokens"
        yield from _listed("too long", tokens["too_long"], over, tokens["first"])
    yield from _spread_line("short side", facts["shorter_side"])
    sizes = ", ".join(f"{width}x{height} ({count:,})" for width, height, count in facts["sizes"])
    yield f"sizes         {sizes or 'none'}" + (f", {facts['other_sizes']:,} others" if facts["other_sizes"] else "")
    yield from _spread_line("width:height", facts["width_to_height"])
    yield f"oblong        {facts['oblong']:,} with one side {LONG_SIDE} times the other or longer"
    twins, echoes = facts["duplicate_pictures"], facts["duplicate_captions"]
    pairs = [f"{one} = {other}" for one, other in twins["first"]]
    yield from _listed("duplicates", twins["count"], f" pictures with {twins['compared']} as another", pairs)
    most = [f"{times:,} times {text[:80]!r}" for text, times in echoes["most"]]
    yield from _listed("repeated", echoes["count"], " captions that another picture or line has too", most)


def _spread_line(label: str, spread: dict[str, float]) -> Iterator[str]:
    if not spread:
        return
    least, median, p95, most = (f"{value:,}" if isinstance(value, int) else f"{value:.2f}" for value in spread.values())
    spread_out = f"{least} to {most}, median {median}, 95 % at most {p95}"
    yield f"{label:<{WIDTH}}{spread_out if least != most else least}"


def _listed(label: str, count: int, what: str, first: Sequence[str]) -> Iterator[str]:
    yield f"{label:<{WIDTH}}{count:,}{what}" + (":" if first else "")
    yield from (f"  {line}" for line in first)
    if 0 < len(first) < count:
        yield "  ..."
