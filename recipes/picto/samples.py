"""Samples as shards hold them: an encoded picture, its captions, its attributes as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from dalle3.errors import DataError
from recipes.picto import captions
from recipes.picto.plan import Planned
from recipes.picto.scenes import Drawn

# How pictures are saved; the settings are part of the data set, for other ones give other bytes.
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 6}),
    "webp": ("WEBP", {"lossless": True, "quality": 60, "method": 4}),
    "webp92": ("WEBP", {"quality": 92, "method": 4}),
}
SHARD = 2000  # samples


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample, encoded."""

    key: str  # unique in the data set
    extension: str  # of the picture, "png" or "webp"
    picture: bytes
    captions: list[str]
    about: dict[str, Any]

    @property
    def split(self) -> str:
        """The split whose shards it is in."""
        return self.about["split"]


def encode(planned: Planned, drawn: Drawn, *, size: int, form: str) -> Sample:
    """The sample of a drawn scene, its picture `size` pixels wide, in one of `FORMATS`."""
    kind, lines = planned.scene.kind, captions.tidy(drawn.captions)
    key = f"{kind}-{planned.number:06d}"
    about = drawn.about | {"kind": kind, "split": planned.split, "captions": lines, "key": key}
    picture, extension = encode_picture(drawn.image, size=size, form=form)
    return Sample(key=key, extension=extension, picture=picture, captions=lines, about=about)


def encode_picture(image: Image.Image, *, size: int, form: str) -> tuple[bytes, str]:
    """The picture's file and its extension."""
    name, settings = FORMATS[form]
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, name, **settings)
    return file.getvalue(), name.lower()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file without a date or an owner, so that equal contents make equal tars."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a tar, in order.

    Raises:
        DataError: it cannot be read to its end.
    """
    try:
        with tarfile.open(path) as tar:
            for entry in tar:
                if (file := tar.extractfile(entry)) is not None:
                    yield entry.name, file.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is no whole tar ({error}); build or copy it again") from None


def files(paths: Iterable[Path], ending: str) -> Iterator[bytes]:
    """The files of tars whose names end so, in order."""
    for path in paths:
        yield from (content for name, content in members(path) if name.endswith(ending))


class Shards:
    """Writes samples to `{split}-{number}.tar` in a folder; the files are closed with the `with` block.

    Args:
        all_captions: whether key.txt holds every caption, one per line, or the canonical one.
    """

    def __init__(self, folder: Path, *, all_captions: bool) -> None:
        self.folder, self.all_captions = folder, all_captions
        self._tars: dict[str, tarfile.TarFile] = {}
        self._written: Counter[str] = Counter()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for tar in self._tars.values():
            tar.close()

    def add(self, sample: Sample) -> None:
        """Writes one sample to the last shard of its split."""
        tar = self._tar(sample.split)
        text = "\n".join(sample.captions if self.all_captions else sample.captions[:1])
        about = json.dumps(sample.about, ensure_ascii=False, sort_keys=True)
        add_file(tar, f"{sample.key}.{sample.extension}", sample.picture)
        add_file(tar, f"{sample.key}.txt", text.encode())
        add_file(tar, f"{sample.key}.json", about.encode())

    def _tar(self, split: str) -> tarfile.TarFile:
        shard, place = divmod(self._written[split], SHARD)
        self._written[split] += 1
        if place == 0:
            if split in self._tars:
                self._tars[split].close()
            self._tars[split] = tarfile.open(self.folder / f"{split}-{shard:05d}.tar", "w")  # noqa: SIM115
        return self._tars[split]


@dataclass
class Tally:
    """What a build has made so far."""

    splits: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    packages: Counter[str] = field(default_factory=Counter)
    authors: Counter[str] = field(default_factory=Counter)  # of clip art
    dropped: Counter[str] = field(default_factory=Counter)  # scenes that cannot be shown as captioned, by kind
    failures: list[str] = field(default_factory=list)
    picture_bytes: int = 0
    captions: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """The number of samples."""
        return self.splits.total()

    def add(self, sample: Sample) -> None:
        """Counts one sample."""
        about = sample.about
        self.splits[sample.split] += 1
        self.kinds[about["kind"]] += 1
        self.styles[about["style"]] += 1
        self.licences[about["license"]] += 1
        self.packages[about["package"]] += 1
        if "author" in about:
            self.authors[about["author"]] += 1
        self.picture_bytes += len(sample.picture)
        self.captions.update(sample.captions)

    def statistics(self) -> dict[str, Any]:
        """The counts, as stats.json holds them."""
        return {
            "total": self.total,
            "by_split": dict(self.splits),
            "by_kind": dict(self.kinds),
            "by_style": dict(self.styles),
            "by_license": dict(self.licences),
            "by_package": dict(self.packages),
            "dropped": dict(self.dropped),
            "failures": self.failures,
            "distinct_captions": len(self.captions),
            "picture_bytes": self.picture_bytes,
        }
