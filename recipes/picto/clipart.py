"""Open Clip Art: the drawings of its library whose titles are likely to say what they show.

Titles and keywords are in each file's RDF. Many are left over from another file, so a title counts only if most of its
words are English words known from emoji and icon names, and the file's name is tried where it fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = (
    "animals",
    "food",
    "plants",
    "people",
    "transportation",
    "tools",
    "buildings",
    "recreation",
    "office",
    "electronics",
    "containers",
    "household",
    "geography/astronomy",
    "science",
    "education",
    "signs_and_symbols/weather",
    "computer/hardware",
    "decorations",
)
_NOT_FOLDERS = (
    "recreation/games/cards",
    "transportation/roadsigns",
    "transportation/aiga-symbols",
    "people/smilies",
    "transportation/vehicles/hummers",
)
_LARGEST = 400_000  # bytes of a file that is considered
_COMMON_WORDS = "the of and with in on a an to for black white half old new two three one happy sad little"
_COMMON: frozenset[str] = frozenset(_COMMON_WORDS.split())
_WORD_SOURCES = ("game-icon", "flat-icon8", "kameleon", "noto")
_NO_KEYWORD = frozenset({"hash", "unsorted", "clipart", "symbol", "menu", "bw"})
_NO_TITLE = re.compile(
    r"icon|collection|theme|untitled|drawing|http|@|architetto|clip ?art|svg|logo|rules|^card$|^head$"
)
_TITLE = re.compile(r"<dc:title[^>]*>(.*?)</dc:title>", re.S)
_AUTHOR = re.compile(r"<dc:creator>.*?<dc:title[^>]*>(.*?)</dc:title>", re.S)
_SUBJECT = re.compile(r"<dc:subject[^>]*>(.*?)</dc:subject>", re.S)


@dataclass(frozen=True, kw_only=True)
class ClipArt:
    """One drawing of the library."""

    path: Path
    name: str  # its path inside the library
    title: str
    words: str  # its folder and keywords
    author: str

    def read(self) -> str:
        """The SVG document."""
        return self.path.read_text(encoding="utf-8", errors="replace")


def library(unpacked: Path) -> Path:
    """The folder of the drawings, below the folder of unpacked packages."""
    return unpacked / "clip" / "usr" / "share" / "openclipart" / "svg"


def known_words(unpacked: Path) -> frozenset[str]:
    """The English words in the names and keywords of emoji and in the names of icons."""
    words: set[str] = set(_COMMON)
    names = unpacked / "_names" / "package" / "en" / "data.json"
    for entry in json.loads(names.read_text(encoding="utf-8")):
        for text in (entry["label"], *entry.get("tags", [])):
            words.update(_letters(text))
    for style in _WORD_SOURCES:
        icons = json.loads((unpacked / style / "package" / "icons.json").read_text(encoding="utf-8"))["icons"]
        words.update(word for name in icons for word in re.findall("[a-z]+", name))
    return frozenset(words)


def list_clips(root: Path, words: Collection[str]) -> list[ClipArt]:
    """The drawings below `root` in the public domain, without text, with a title made of known words."""
    seen: set[str] = set()
    clips = []
    for path in _files(root):
        svg = path.read_text(encoding="utf-8", errors="replace")
        digest = hashlib.md5(svg.encode(), usedforsecurity=False).hexdigest()
        if digest not in seen and _is_usable(svg):
            seen.add(digest)
            clip = _described(path, root, svg, words)
            if clip:
                clips.append(clip)
    return clips


def _files(root: Path) -> Iterator[Path]:
    """The files that may be used, folder by folder, each in order of name."""
    for folder, inner, files in os.walk(root):
        inner.sort()
        relative = os.path.relpath(folder, root)
        if relative.startswith(_FOLDERS) and not relative.startswith(_NOT_FOLDERS):
            for name in sorted(files):
                path = Path(folder, name)
                if name.endswith(".svg") and not path.is_symlink() and path.stat().st_size <= _LARGEST:
                    yield path


def _is_usable(svg: str) -> bool:
    """Whether it is in the public domain and looks the same on every machine, which text does not."""
    return "<text" not in svg and "<image" not in svg and ("PublicDomain" in svg or "publicdomain" in svg)


def _described(path: Path, root: Path, svg: str, words: Collection[str]) -> ClipArt | None:
    author, title = _first(_AUTHOR, svg), _first(_TITLE, svg)
    if re.match(r"[Cc]lip ?art by ", title):  # often left over from another file
        title = ""
    black_and_white = re.search(r"(^|_)b_?w(_|$)", path.stem) or "b and w" in title.lower()
    name = next((text for text in (_plain(title), _from_file(path.stem, author)) if _is_title(text, words)), "")
    if not name or "architetto" in path.name:
        return None
    return ClipArt(
        path=path,
        name=os.path.relpath(path, root),
        title=name + (" in black and white" if black_and_white else ""),
        words=_folder_and_keywords(path, svg, words),
        author=author,
    )


def _first(pattern: re.Pattern[str], svg: str) -> str:
    match = pattern.search(svg)
    return match.group(1).strip() if match else ""


def _plain(title: str) -> str:
    """A title without punctuation, brackets and numbers."""
    text = re.sub(r"[_\-]+", " ", title)
    text = re.sub(r"\(.*?\)|\.svg|\bbw\b", " ", text)
    text = re.sub(r"\d+", " ", text)
    return re.sub(r"\s+", " ", text).strip(" ,.").lower()


def _from_file(stem: str, author: str) -> str:
    """The words of a file's name that are not its author's."""
    author = re.sub("[^a-z]", "", author.lower())
    tokens = re.split(r"[_\-]+", re.sub(r"\d+", "", stem))
    return " ".join(token for token in tokens if _is_subject(token, author)).lower()


def _is_subject(token: str, author: str) -> bool:
    if len(token) < 2 or token in ("bw", "ganson", "illustration"):
        return False
    return token not in author and not author.startswith(token)


def _is_title(text: str, words: Collection[str]) -> bool:
    """Whether the text can be a caption: short, and 60 % of its words known."""
    if not (3 <= len(text) <= 60 and text.isascii()) or _NO_TITLE.search(text):
        return False
    found = _letters(text)
    known = sum(word in words or word.rstrip("s") in words for word in found)
    return len(found) > 0 and known >= 0.6 * len(found)


def _folder_and_keywords(path: Path, svg: str, words: Collection[str]) -> str:
    keywords = re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", _first(_SUBJECT, svg), re.S)
    useful = [word for word in keywords if word.isalpha() and word in words and word not in _NO_KEYWORD]
    folder = path.parent.name.replace("_", " ").replace("bugs", "insect")
    return " ".join(dict.fromkeys(f"{folder} {' '.join(useful[:2])}".split()))


def _letters(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())
