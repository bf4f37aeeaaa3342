"""`python -m recipes.picto.train --data data/picto --size full --minutes 21`: all four models, from data to a folder.

Trains image tokenizer and CLIP, then how the image tokenizer draws its codes, encodes the pictures, trains DALLE and
decoder, and packs them, by commands of `dalle3` that it prints. `--minutes` is what training may take in all;
`--this_call` ends a call earlier. Called again, it goes on where it was. The sizes are in `sizes/`, with the flags of
every command, and the phases of a part that has some: shares of its time with a source or flags of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dalle3.errors import ConfigError, Dalle3Error, DataError
from dalle3.files import whole_folder
from dalle3.log import note
from dalle3.runtime import fast_bfloat16, pick_device
from recipes.picto.lessons import LESSONS, write_lesson
from recipes.picto.schedule import Phase, Run, call_all, stoppable, train

EVERY = {"keep_n_checkpoints": 2, "save_every_n_steps": 500, "log_every_n_steps": 50, "sample_every_n_steps": 500}
SIZES = Path(__file__).parent / "sizes"
TRAIN, VAL = "train-*.tar", "val-*.tar"
CREDIT = "ATTRIBUTION.md"
FLAGS = {"dalle": "--dalle_path", "clip": "--clip", "decoder": "--decoder"}  # of `dalle3 pack`
# What a DALLE is trained on: codes of all pictures, those of a lesson, or pictures, which it cuts and encodes.
CODES, PICTURES = "codes", "pictures"
SOURCES = (CODES, *LESSONS, PICTURES)
PART = {"train", "share", "flags"}  # what a size says of each part
# Parts that begin where another ended and take its place; a size may do without.
FINISH = {"codec": "codec_finish", "decoder": "decoder_finish"}
CODED = ("dalle", "decoder")  # what needs codes
# What is in one of these needs only what is in those before.
STAGES = (("codec", "clip"), (FINISH["codec"],), CODED, (FINISH["decoder"],))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, on what, and for how long."""

    data: Path
    out: Path
    size: dict[str, Any]  # a file of `sizes/`
    minutes: float
    shared: tuple[str, ...]  # flags of every training: device, dtype, workers
    processes: int = 1  # of each training

    def __post_init__(self) -> None:
        """Raises ConfigError where there is no time, a phase cannot be, or the processes cannot share a batch."""
        if not self.minutes > 0:
            raise ConfigError(f"--minutes is {self.minutes}; it must be above 0")
        if self.processes < 1:
            raise ConfigError(f"--processes is {self.processes}; it must be at least 1")
        for name in self.size["parts"]:
            phases = self.phases(name)
            check_phases(name, phases)
            for size in (batch_size(self.flags(name, phase)) for phase in phases):
                if size % self.processes:
                    raise ConfigError(
                        f"{name} has batches of {size}, which --processes {self.processes} cannot share; "
                        "take a divisor, or change batch_size in the JSON of --size"
                    )

    def phases(self, name: str) -> list[dict[str, Any]]:
        """The phases of a part as the size has them; one where it has none."""
        return self.size["parts"][name].get("phases", [{"share": 1}])

    def flags(self, name: str, phase: dict[str, Any]) -> dict[str, Any]:
        """The flags of a part in one of its phases."""
        return {**self.size["parts"][name]["flags"], **phase.get("flags", {})}

    def run(self, name: str) -> Run:
        """The training of a part."""
        phases = self.phases(name)
        return Run(
            name=name,
            phases=tuple(Phase(arguments=self.arguments(name, phase), share=phase["share"]) for phase in phases),
            folder=self.out / name,
            seconds=60 * self.minutes * self.size["parts"][name]["share"],
            processes=self.processes,
        )

    def arguments(self, name: str, phase: dict[str, Any]) -> tuple[str, ...]:
        """What `dalle3` is called with for a part in one of its phases."""
        source, own = self.source(name, phase), self.flags(name, phase)
        place = ["--out", str(self.out / name), "--resume", "auto", "--image_text_folder", source]
        own["batch_size"] = batch_size(own) // self.processes
        flags = [*self.shared, *as_flags(own), *self.needs(name)]  # of two the last counts: a part's own
        return ("train", self.size["parts"][name]["train"], *place, *flags)

    def source(self, name: str, phase: dict[str, Any]) -> str:
        """What a part is trained on in one of its phases."""
        source = phase.get("source", CODES) if name == "dalle" else PICTURES
        return pattern(self.data, TRAIN) if source == PICTURES else str(self.out / source)

    def needs(self, name: str) -> list[str]:
        """The flags of what a part needs of those before it."""
        if name == "codec":
            return []
        if name == FINISH["codec"]:
            return ["--init_from", str(self.run("codec").checkpoint)]
        if name == FINISH["decoder"]:
            return [*self.needs("decoder"), "--init_from", str(self.run("decoder").checkpoint)]
        words = ["--bpe_path", str(self.out / "words" / "tokenizer.json"), "--hug"]
        if name == "clip":
            return words
        codec = ["--vae_path", str(self.codec)]
        if name != "dalle":
            return [*codec, "--held_out", pattern(self.data, VAL)]
        reads = "clip_maps" in self.size["parts"][name]["flags"]
        return [*codec, *words, *(["--clip", str(self.last("clip"))] if reads else [])]

    def last(self, name: str) -> Path:
        """The newest checkpoint of a part, or of what finishes it where that has one."""
        finish = FINISH.get(name, name)
        begun = finish in self.size["parts"] and any((self.out / finish).glob("step-*"))
        return self.run(finish if begun else name).checkpoint

    @property
    def codec(self) -> Path:
        """The image tokenizer as it was when its codes were made: later steps would change what codes mean."""
        return self.out / "codec-frozen"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is not trained yet; 0 when all is packed, 3 where time ran out first, 2 for a mistake."""
    args = _parser().parse_args(arguments)
    until = time.monotonic() + 60 * args.this_call
    try:
        dtype = args.dtype or ("bfloat16" if fast_bfloat16(pick_device(args.device)) else "float32")
        plan = Plan(
            data=args.data,
            out=args.out,
            size=read_size(args.size),
            minutes=args.minutes,
            shared=tuple(as_flags({"device": args.device, "dtype": dtype, "num_workers": args.num_workers, **EVERY})),
            processes=args.processes,
        )
        if args.only_pack:
            pack(plan)
            return 0
        with stoppable() as stop:
            return carry_out(plan, together=args.together, workers=args.num_workers, until=until, stop=stop)
    except Dalle3Error as error:
        note(f"error: {error}")
        return 2


def carry_out(plan: Plan, *, together: bool, workers: int, until: float, stop: threading.Event) -> int:
    """Goes through the stages; the exit code."""
    learn_words(plan)
    for stage in STAGES:
        if stage == CODED:
            freeze_codec(plan)
            encode(plan, processes=max(1, workers))
            prepare_lessons(plan)
        for runs in grouped(plan, stage, together=together):
            if not train(runs, until=until, stop=stop):
                note("stopped early; the same command goes on where this ended")
                return 3
    pack(plan)
    return 0


def grouped(plan: Plan, stage: Sequence[str], *, together: bool) -> Iterator[list[Run]]:
    """The unfinished trainings of a stage, each alone, or all side by side with the time of all."""
    frozen = ("codec", FINISH["codec"]) if plan.codec.is_dir() else ()
    runs = [plan.run(name) for name in stage if name in plan.size["parts"] and name not in frozen]
    if not together:
        yield from ([run] for run in runs if not run.finished)
        return
    seconds = sum(run.seconds for run in runs)
    side_by_side = [replace(run, seconds=seconds) for run in runs]
    if left := [run for run in side_by_side if not run.finished]:
        yield left


def learn_words(plan: Plan) -> None:
    """Learns the text tokenizer from the captions, which it reads without decoding a picture."""
    folder = plan.out / "words"
    if folder.is_dir():
        return
    from dalle3.tokenizers.huggingface import train_bpe

    tokenizer = train_bpe(captions(plan.data), plan.size["words"])
    with whole_folder(folder) as partial:
        tokenizer.save(partial)
    note(f"{folder}: {tokenizer.vocab_size} tokens")


def captions(data: Path) -> Iterator[str]:
    """Every caption of the training pictures."""
    from recipes.picto.samples import files

    for content in files(tars(data, TRAIN), ".txt"):
        yield from content.decode().splitlines()


def freeze_codec(plan: Plan) -> None:
    """Sets aside the image tokenizer that the codes are made by."""
    if not plan.codec.is_dir():
        with whole_folder(plan.codec) as partial:
            shutil.copytree(plan.last("codec"), partial, ignore=shutil.ignore_patterns("train"), dirs_exist_ok=True)


def encode(plan: Plan, *, processes: int) -> None:
    """Encodes the pictures that are not encoded yet, in so many processes."""
    source, out = pattern(plan.data, TRAIN), str(plan.out / CODES)
    line = ("encode", "--image_text_folder", source, "--vae_path", str(plan.codec), "--out", out)
    call_all([*line, "--shard_size", "4000"], processes=processes)


def prepare_lessons(plan: Plan) -> None:
    """Sets aside the codes of the lessons that the DALLE has."""
    for name in sorted({phase.get("source", CODES) for phase in plan.phases("dalle")} & LESSONS.keys()):
        folder = plan.out / name
        if not folder.is_dir():
            number = write_lesson(LESSONS[name], tars(plan.data, TRAIN), plan.out / CODES, folder)
            note(f"{folder}: {number} samples")


def pack(plan: Plan) -> None:
    """Puts all into the folder `model`, with the credit its data asks for, in place of one of an earlier call."""
    folder, fresh = plan.out / "model", plan.out / "model-fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    paths = [word for name, flag in FLAGS.items() for word in (flag, str(plan.last(name)))]
    best = as_flags(plan.size.get("recommended", {}))
    call_all(["pack", str(fresh), *paths, "--most_mb", "60", *best], processes=1)
    if (credit := plan.data / CREDIT).exists():
        shutil.copy(credit, fresh)
    shutil.rmtree(folder, ignore_errors=True)  # only now: a pack that fails leaves the model there was
    fresh.rename(folder)


def read_size(name: str) -> dict[str, Any]:
    """A file of `sizes/`, or of one's own.

    Raises:
        ConfigError: there is no such file, it is no JSON, or lacks a part.
    """
    path = SIZES / f"{name}.json" if not name.endswith(".json") else Path(name)
    try:
        size = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--size {name}: {path} cannot be read as JSON ({error})") from None
    if not _whole(size):
        parts = ", ".join(_needed())
        raise ConfigError(
            f"--size {name}: {path} needs words, and parts for {parts} with {', '.join(sorted(PART))}, "
            f"as {SIZES / 'small.json'} has"
        )
    return size


def _whole(size: Any) -> bool:
    """Whether a size says of each part what `Plan` reads."""
    try:
        parts = size["parts"]
        return "words" in size and all(
            parts[name].keys() >= PART for name in (*_needed(), *parts.keys() & FINISH.values())
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _needed() -> list[str]:
    return [name for stage in STAGES for name in stage if name not in FINISH.values()]


def check_phases(name: str, phases: list[dict[str, Any]]) -> None:
    """Raises ConfigError where the phases of a part are not what this program makes of phases."""
    where, shares = f"the phases of {name} in the JSON of --size", [phase.get("share", 0) for phase in phases]
    if min(shares, default=0) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"{where} have the shares {shares} of its time; all must be above 0, and their sum 1")
    for phase in phases:
        if unknown := phase.keys() - {"share", "source", "flags"}:
            raise ConfigError(f"{where} have {', '.join(sorted(unknown))}; a phase has share, source and flags")
        if (source := phase.get("source")) is not None and (name != "dalle" or source not in SOURCES):
            raise ConfigError(f"{where} have the source {source}; only dalle has one of {', '.join(SOURCES)}")
        if "steps" in phase.get("flags", {}):
            raise ConfigError(f"{where} have steps; these count through all phases, so they go into the part's flags")


def batch_size(flags: dict[str, Any]) -> int:
    """Examples of a step, in all processes together."""
    if (given := flags.get("batch_size")) is not None:
        return given
    from dalle3.train.loop import LoopConfig

    return LoopConfig().batch_size


def as_flags(values: dict[str, Any]) -> list[str]:
    """Values as flags of the command line."""
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags


def pattern(data: Path, glob: str) -> str:
    """The tars of a data set as `dalle3` takes them: a path, or a pattern with braces."""
    first, *others = tars(data, glob)
    if not others:
        return str(first)
    return str(data / f"{glob.split('*')[0]}{{{first.stem[-5:]}..{others[-1].stem[-5:]}}}.tar")


def tars(data: Path, glob: str) -> list[Path]:
    """The tars of a data set.

    Raises:
        DataError: there is none.
    """
    if not (found := sorted(data.glob(glob))):
        raise DataError(f"{data} holds no {glob}; build the data first: python -m recipes.picto.build --help")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.picto.train", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that recipes.picto.build wrote, with --txt all")
    add("--out", type=Path, default=Path("runs/picto"), help="folder of all runs; the model is in model/")
    add("--size", default="small", help="small, full, or a JSON like those in recipes/picto/sizes (default: small)")
    add("--minutes", type=float, required=True, help="what training may take, in all calls together")
    add(
        "--this_call",
        type=float,
        default=math.inf,
        help="minutes after which this call stops and saves (default: it does not)",
    )
    add("--only_pack", action="store_true", help="train nothing; pack the newest checkpoints of all parts")
    add("--together", action="store_true", help="train two models at once, each for the time of both: for a GPU")
    add("--device", default="auto", help="cpu, cuda; auto takes a GPU where there is one")
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of matrix products (default: bfloat16, or float32 on a CPU without instructions for it)",
    )
    add("--processes", type=int, default=1, help="processes that share the batches of each training (default: 1)")
    add("--num_workers", type=int, default=0, help="processes that read data ahead, for each that trains (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
