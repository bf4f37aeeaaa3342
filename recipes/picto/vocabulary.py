"""The words captions are made of: styles, colours, backgrounds, hypernyms."""

from __future__ import annotations

RGB = tuple[int, int, int]

# The first phrase of a style is the canonical one; it is the same in every kind of picture, so that styles compose.
STYLES: dict[str, tuple[str, ...]] = {
    "fluent-3d": ("3d render", "3d icon", "glossy 3d emoji"),
    "fluent-color": ("soft gradient icon", "gradient illustration", "shaded vector icon"),
    "fluent-flat": ("flat icon", "flat vector icon", "flat color illustration"),
    "fluent-hc": ("glyph icon", "monochrome pictogram", "single color line icon"),
    "noto": ("cartoon emoji", "noto style emoji", "detailed cartoon icon"),
    "noto-blob": ("retro blob emoji", "old android style emoji"),
    "twemoji": ("simple bold emoji", "twemoji style", "minimal flat emoji"),
    "emojione": ("classic shaded emoji", "emojione style", "smooth cartoon icon"),
    "fxemoji": ("playful flat sticker", "firefox os style emoji"),
    "outline": ("outlined cartoon sticker", "thick outline cartoon"),
    "flat-icon8": ("material flat icon", "flat app icon"),
    "kameleon": ("round badge icon", "circle badge illustration"),
    "game-icon": ("silhouette icon", "game icon silhouette"),
    "clip": ("clip art", "vintage vector clip art"),
}

SMILEYS, PEOPLE, SKIN_TONES, SYMBOLS, FLAGS = 0, 1, 2, 8, 9
GROUPS = (
    "smileys",
    "people",
    "component",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
    "objects",
    "symbols",
    "flags",
)
THINGS = frozenset({3, 4, 5, 6, 7})  # the groups that can stand in a scene
OBJECTS = 7

# What an emoji subgroup's members are, where that says more than their name.
HYPERNYMS = {
    "animal mammal": "mammal",
    "animal bird": "bird",
    "animal amphibian": "amphibian",
    "animal reptile": "reptile",
    "animal marine": "sea animal",
    "animal bug": "bug",
    "plant flower": "flower",
    "plant other": "plant",
    "food fruit": "fruit",
    "food vegetable": "vegetable",
    "food prepared": "dish",
    "food asian": "asian dish",
    "food sweet": "dessert",
    "drink": "drink",
    "dishware": "tableware",
    "place map": "map",
    "place geographic": "landscape",
    "place building": "building",
    "place religious": "religious building",
    "place other": "place",
    "transport ground": "land vehicle",
    "transport water": "watercraft",
    "transport air": "aircraft",
    "time": "timepiece",
    "sky & weather": "weather",
    "event": "festive thing",
    "award medal": "award",
    "sport": "sport",
    "game": "game",
    "arts & crafts": "art supply",
    "clothing": "clothing",
    "musical instrument": "musical instrument",
    "phone": "phone",
    "computer": "electronic device",
    "light & video": "device",
    "book paper": "stationery",
    "money": "money",
    "mail": "mail",
    "writing": "writing tool",
    "office": "office supply",
    "lock": "lock",
    "tool": "tool",
    "science": "science tool",
    "medical": "medical thing",
    "household": "household object",
}

COLORS: dict[str, RGB] = {
    "red": (220, 40, 45),
    "orange": (245, 135, 30),
    "yellow": (250, 210, 50),
    "green": (60, 165, 70),
    "blue": (45, 105, 220),
    "purple": (130, 70, 190),
    "pink": (240, 120, 175),
    "brown": (130, 80, 45),
    "black": (30, 30, 32),
    "gray": (135, 138, 142),
    "white": (255, 255, 255),
    "teal": (25, 160, 160),
}
INKS = tuple(color for color in COLORS if color != "white")  # what a glyph can be drawn in
HUES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")  # what an object can be recoloured to

BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "light gray": (228, 230, 233),
    "light blue": (196, 224, 250),
    "light green": (205, 238, 205),
    "light yellow": (252, 243, 190),
    "light pink": (252, 214, 226),
    "light purple": (224, 211, 246),
    "light orange": (253, 222, 186),
    "dark blue": (28, 44, 92),
    "dark gray": (52, 54, 60),
    "red": (214, 52, 56),
    "orange": (243, 146, 48),
    "yellow": (250, 214, 70),
    "green": (76, 170, 84),
    "blue": (58, 116, 222),
    "purple": (128, 80, 190),
    "pink": (241, 137, 185),
    "teal": (40, 165, 165),
    "black": (18, 18, 20),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
