"""ATTRIBUTION.md: the packages, artists and licences of the pictures in one build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from recipes.picto.samples import Tally
from recipes.picto.sources import BY_STYLE, NAMES, Source

_LICENCES = {
    "MIT": ("MIT License", "text below"),
    "Apache-2.0": ("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
    "CC-BY-4.0": ("Creative Commons Attribution 4.0", "https://creativecommons.org/licenses/by/4.0/"),
    "CC-BY-3.0": ("Creative Commons Attribution 3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "CC0-1.0": ("Creative Commons Zero 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "public domain": ("Public domain", "dedicated by the author named in the sample's JSON"),
}
_INTRODUCTION = """\
# Attribution

The pictures of this data set were made from the works below. Each sample's JSON names the package and the licence of
its picture, and for single objects the file in the package. The works were changed: cut out, scaled, and, where the
sample's kind says so, recoloured, put on a background or in a badge, repeated, or put beside other works of one style.
None of the artists has endorsed this.
"""
_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def attribution(tally: Tally, archives: Mapping[str, str]) -> str:
    """The document for the pictures a build has made; `archives` are the SHA-256 of the packages' files."""
    used = [(BY_STYLE[style], tally.styles[style]) for style in sorted(tally.styles)]
    sections = [
        _INTRODUCTION,
        _section("Works", _works(used)),
        _section("Licences", _licences(used)),
        _section("MIT License", [*_copyrights([source for source, _ in used] + [NAMES]), "", _MIT.rstrip()]),
    ]
    if tally.authors:
        sections.append(_section("Authors of the clip art", _authors(tally.authors)))
    sections.append(_section("Files", [f"- {name}: SHA-256 `{digest}`" for name, digest in sorted(archives.items())]))
    return "\n".join(sections)


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *lines, ""])


def _works(used: Iterable[tuple[Source, int]]) -> list[str]:
    lines = [
        f"- **{source.style}** ({number} pictures): {source.credit}. {source.licence}. From {source.home}, as packaged "
        f"in {source.registry} `{source.label}`."
        for source, number in used
    ]
    return [*lines, f"- Names in captions: {NAMES.credit}. {NAMES.licence}. {NAMES.registry} `{NAMES.label}`."]


def _licences(used: Iterable[tuple[Source, int]]) -> list[str]:
    totals = dict.fromkeys(_LICENCES, 0)
    for source, number in used:
        totals[source.licence] += number
    return [
        f"- {licence}: {title}, {where}; {totals[licence]} pictures"
        for licence, (title, where) in _LICENCES.items()
        if totals[licence] or licence == NAMES.licence
    ]


def _copyrights(sources: Iterable[Source]) -> list[str]:
    return list(dict.fromkeys(f"- {source.credit}" for source in sources if source.licence == "MIT"))


def _authors(authors: Mapping[str, int]) -> list[str]:
    named = sorted((name for name in authors if name), key=str.lower)
    lines = [f"- {' '.join(name.split())} ({authors[name]})" for name in named]
    return [*lines, f"- not named in the file ({authors['']})"] if authors.get("") else lines
