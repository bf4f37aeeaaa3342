"""Makes the data set: plans the scenes, draws them in as many processes as asked for, writes shards."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from dalle3.errors import ConfigError
from dalle3.files import whole_folder
from dalle3.log import note
from recipes.picto.assets import list_assets
from recipes.picto.attribution import attribution
from recipes.picto.clipart import known_words, library, list_clips
from recipes.picto.concepts import load_concepts
from recipes.picto.plan import KINDS, Amounts, Planned, plan
from recipes.picto.render import Drawings, RenderError
from recipes.picto.samples import FORMATS, Sample, Shards, Tally, encode
from recipes.picto.scenes import Material, draw
from recipes.picto.sources import BY_STYLE, CLIP_ART
from recipes.picto.splits import SPLITS

_REPORT_EVERY = 4000  # samples


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make of the material. `limit` keeps the first scenes of the shuffled plan; 0, or no names, keep all."""

    size: int = 256
    form: str = "png"
    jobs: int = 1
    only: Collection[str] = ()
    splits: Collection[str] = ()
    exclude: Collection[str] = ()
    limit: int = 0
    all_captions: bool = False
    amounts: Amounts = field(default_factory=Amounts)

    def check(self) -> None:
        """Raises ConfigError for a value that cannot be."""
        _check_names("--only", self.only, KINDS)
        _check_names("--splits", self.splits, SPLITS)
        _check_names("--exclude", self.exclude, BY_STYLE)
        _check_names("--fmt", [self.form], FORMATS)
        for flag, value, least in (("--size", self.size, 1), ("--jobs", self.jobs, 1), ("--limit", self.limit, 0)):
            if value < least:
                raise ConfigError(f"{flag} is {value}; expected {least} or more")


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Turns planned scenes into samples."""

    material: Material
    size: int
    form: str

    def make(self, planned: Planned) -> Sample | str | None:
        """The sample; None where the scene cannot be shown as captioned; a message where resvg failed."""
        try:
            drawn = draw(planned.scene, self.material)
        except RenderError as error:
            return f"{planned.scene}: {error}"
        return encode(planned, drawn, size=self.size, form=self.form) if drawn else None


def gather(cache: Path, *, exclude: Collection[str] = ()) -> Material:
    """The material of the packages unpacked below `cache`, without the styles to exclude."""
    unpacked = cache / "unpacked"
    concepts = load_concepts(unpacked / "_names" / "package" / "en")
    root, clips = library(unpacked), []
    if root.is_dir() and CLIP_ART.style not in exclude:
        clips = list_clips(root, known_words(unpacked))
    assets = list_assets(unpacked, concepts, without=exclude)
    return Material(assets=assets, clips=clips, drawings=Drawings(cache / "drawings"))


def make(material: Material, out: Path, options: Options, *, archives: dict[str, str]) -> Tally:
    """Counts of what was written to the folder `out`: shards, stats.json and ATTRIBUTION.md.

    Args:
        archives: the SHA-256 of each package's file, for the attribution.

    Raises:
        ConfigError: an option is impossible.
        OutputError: `out` exists and is not empty, or cannot be written.
    """
    options.check()
    scenes = _plan(material, options)
    maker, tally, started = Maker(material=material, size=options.size, form=options.form), Tally(), time.monotonic()
    with whole_folder(out) as partial, Shards(partial, all_captions=options.all_captions) as shards:
        for planned, made in zip(scenes, _made(maker, scenes, options.jobs), strict=True):
            _take(planned, made, tally, shards)
            if tally.total and tally.total % _REPORT_EVERY == 0 and isinstance(made, Sample):
                note(f"{tally.total} samples in {time.monotonic() - started:.0f} s")
        about = {"size": options.size, "format": options.form, "seconds": round(time.monotonic() - started)}
        (partial / "stats.json").write_text(json.dumps(tally.statistics() | about, indent=1) + "\n", encoding="utf-8")
        (partial / "ATTRIBUTION.md").write_text(attribution(tally, archives), encoding="utf-8")
    return tally


def _plan(material: Material, options: Options) -> list[Planned]:
    kinds = options.only or KINDS
    scenes = plan(material.assets, material.clips, kinds=kinds, amounts=options.amounts, without=options.exclude)
    return [planned for planned in scenes[: options.limit or None] if planned.split in (options.splits or SPLITS)]


def _take(planned: Planned, made: Sample | str | None, tally: Tally, shards: Shards) -> None:
    if made is None:
        tally.dropped[planned.scene.kind] += 1
    elif isinstance(made, str):
        tally.failures.append(made)
    else:
        tally.add(made)
        shards.add(made)


def _made(maker: Maker, scenes: Iterable[Planned], jobs: int) -> Iterator[Sample | str | None]:
    """What each scene became, in order, whatever the number of processes."""
    if jobs == 1:
        yield from map(maker.make, scenes)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(maker,)) as pool:
        yield from pool.map(_make, scenes, chunksize=16)


_maker: Maker | None = None  # of this worker process: sent once, for the material is large


def _start(maker: Maker) -> None:
    global _maker
    _maker = maker


def _make(planned: Planned) -> Sample | str | None:
    assert _maker is not None, "a worker starts with its maker"
    return _maker.make(planned)


def _check_names(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
    expected = list(known)
    unknown = [name for name in names if name not in expected]
    if unknown:
        raise ConfigError(f"{flag}: there is no {', '.join(unknown)}; expected some of {', '.join(expected)}")
