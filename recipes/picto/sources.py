"""The packages the pictures come from: pinned versions, licences as shipped, whom to credit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """A package of one registry and what its pictures may be used for."""

    style: str  # the pictures' style, and the package's folder in the cache
    registry: str  # npm, Debian or PyPI
    package: str
    version: str
    licence: str  # SPDX identifier, or "public domain"
    credit: str  # the artists, as the package names them
    home: str  # where the art comes from

    @property
    def label(self) -> str:
        """The package and its version, as each sample's JSON gives them."""
        if self.registry == "Debian":
            return f"{self.package}={self.version} (Debian)"
        return f"{self.package}{'@' if self.registry == 'npm' else '=='}{self.version}"


def _npm(style: str, package: str, version: str, licence: str, *, credit: str, home: str) -> Source:
    return Source(
        style=style, registry="npm", package=package, version=version, licence=licence, credit=credit, home=home
    )


def _iconify(style: str, name: str, version: str, licence: str, *, credit: str, home: str) -> Source:
    return _npm(style, f"@iconify-json/{name}", version, licence, credit=credit, home=home)


def _dicebear(style: str, licence: str, *, credit: str, home: str) -> Source:
    return Source(
        style=style,
        registry="PyPI",
        package="dicebear-styles",
        version="10.6.0",
        licence=licence,
        credit=credit,
        home=home,
    )


_FLUENT = "https://github.com/microsoft/fluentui-emoji"
_NOTO = "https://github.com/googlefonts/noto-emoji"
_STREAMLINE = "https://github.com/webalys-hq/streamline-vectors"
_DICEBEAR = "https://www.dicebear.com"

GAME_ICON_ARTISTS = (
    "Lorc, Delapouite, John Colburn, Felbrigg, John Redman, Carl Olsen, Sbed, PriorBlue, Willdabeast, Viscious Speed, "
    "Lord Berandas, Irongamer, HeavenlyDog, Lucas, Faithtoken, Skoll, Andy Meneely, Cathelineau, Kier Heyl, Aussiesim, "
    "Sparker, Zeromancer, Rihlsul, Quoting, Guard13007, DarkZaitzev, SpencerDub, GeneralAce135, Zajkonur, Catsu, "
    "Starseeker, Pepijn Poolman, Pierre Leducq, Caro Asercion"
)

EMOJI = (
    _npm(
        "fluent-3d",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT",
        credit="Fluent Emoji, Copyright (c) Microsoft Corporation; packaged by LobeHub, Copyright (c) 2023 LobeHub",
        home=_FLUENT,
    ),
    _iconify(
        "fluent-color",
        "fluent-emoji",
        "1.2.7",
        "MIT",
        credit="Fluent Emoji, Copyright (c) Microsoft Corporation",
        home=_FLUENT,
    ),
    _iconify(
        "fluent-flat",
        "fluent-emoji-flat",
        "1.2.6",
        "MIT",
        credit="Fluent Emoji, Copyright (c) Microsoft Corporation",
        home=_FLUENT,
    ),
    _iconify("noto", "noto", "1.2.9", "Apache-2.0", credit="Noto Emoji, Google Inc", home=_NOTO),
    _iconify("noto-blob", "noto-v1", "1.2.5", "Apache-2.0", credit="Noto Emoji v1, Google Inc", home=_NOTO),
    _iconify(
        "twemoji",
        "twemoji",
        "1.2.5",
        "CC-BY-4.0",
        credit="Twemoji, Twitter and contributors",
        home="https://github.com/jdecked/twemoji",
    ),
    _iconify(
        "emojione",
        "emojione",
        "1.2.3",
        "CC-BY-4.0",
        credit="EmojiOne 2.x, Emoji One",
        home="https://github.com/EmojiTwo/emojitwo",
    ),
    _iconify(
        "fxemoji",
        "fxemoji",
        "1.2.2",
        "Apache-2.0",
        credit="FxEmojis, Mozilla",
        home="https://github.com/mozilla/fxemoji",
    ),
    _iconify(
        "outline", "streamline-emojis", "1.2.4", "CC-BY-4.0", credit="Streamline Emojis, Streamline", home=_STREAMLINE
    ),
    _iconify(
        "fluent-hc",
        "fluent-emoji-high-contrast",
        "1.2.6",
        "MIT",
        credit="Fluent Emoji, Copyright (c) Microsoft Corporation",
        home=_FLUENT,
    ),
)
ICONS = (
    _iconify(
        "flat-icon8",
        "flat-color-icons",
        "1.2.3",
        "MIT",
        credit="Flat Color Icons, Copyright (c) Icons8",
        home="https://github.com/icons8/flat-Color-icons",
    ),
    _iconify(
        "kameleon",
        "streamline-kameleon-color",
        "1.2.2",
        "CC-BY-4.0",
        credit="Kameleon icons, Streamline",
        home=_STREAMLINE,
    ),
    _iconify(
        "game-icon",
        "game-icons",
        "1.2.4",
        "CC-BY-3.0",
        credit=f"game-icons.net: icons made by {GAME_ICON_ARTISTS} and contributors",
        home="https://github.com/game-icons/icons",
    ),
)
NAMES = _npm(
    "_names",
    "emojibase-data",
    "17.0.0",
    "MIT",
    credit="emojibase, Copyright (c) 2017-2019 Miles Johnson; names from Unicode CLDR",
    home="https://github.com/milesj/emojibase",
)
CLIP_ART = Source(
    style="clip",
    registry="Debian",
    package="openclipart-svg",
    version="1:0.18+dfsg-19",
    licence="public domain",
    credit="Open Clip Art Library; each sample's JSON names the picture's author",
    home="https://openclipart.org",
)
CHARACTERS = (
    _dicebear("open-peeps", "CC0-1.0", credit="Open Peeps by Pablo Stanley", home="https://www.openpeeps.com"),
    _dicebear("personas", "CC-BY-4.0", credit="Personas by Draftbit", home="https://personas.draftbit.com"),
    _dicebear(
        "toon-head",
        "CC-BY-4.0",
        credit="ToonHead by Johan Melin",
        home="https://www.figma.com/community/file/1589627891082866389",
    ),
    _dicebear(
        "big-smile",
        "CC-BY-4.0",
        credit="Custom Avatar by Ashley Seo",
        home="https://www.figma.com/community/file/881358461963645496",
    ),
    _dicebear("critters", "CC0-1.0", credit="Critters by DiceBear", home=_DICEBEAR),
    _dicebear("sprouts", "CC0-1.0", credit="Sprouts by DiceBear", home=_DICEBEAR),
    _dicebear("voxel-art", "CC0-1.0", credit="Voxel Art by DiceBear", home=_DICEBEAR),
    _dicebear("voxel-bot", "CC0-1.0", credit="Voxel Bot by DiceBear", home=_DICEBEAR),
    _dicebear("landscape", "CC0-1.0", credit="Landscape by DiceBear", home=_DICEBEAR),
    _dicebear("planets", "CC0-1.0", credit="Planets by DiceBear", home=_DICEBEAR),
    _dicebear(
        "fun-emoji",
        "CC-BY-4.0",
        credit="Fun Emoji Set by Davis Uche",
        home="https://www.figma.com/community/file/968125295144990435",
    ),
    _dicebear("cutouts", "CC0-1.0", credit="Cutouts by DiceBear", home=_DICEBEAR),
)
NPM = (*EMOJI, *ICONS, NAMES)
BY_STYLE = {source.style: source for source in (*EMOJI, *ICONS, CLIP_ART, *CHARACTERS)}
