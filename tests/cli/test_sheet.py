"""Contact sheets of what generate.py wrote."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dalle3.cli import main
from dalle3.output import Gallery, Picture

COLOURS = ("red", "lime", "blue")


def gallery(folder, *, decoded=False):
    """A folder of one plain picture of each colour, 8 pixels a side, and, decoded, as black ones of 16."""
    codes = np.zeros((2, 2), dtype=np.int64)
    for colour in COLOURS:
        fine = Picture(image=Image.new("RGB", (16, 16)), codes=codes, seed=0, index=0, recipe={"prompt": colour})
        drawn = Picture(
            image=Image.new("RGB", (8, 8), colour),
            codes=codes,
            seed=0,
            index=0,
            recipe={"prompt": colour},
            decoded=fine if decoded else None,
        )
        Gallery(folder).add(drawn, prompt=colour, place=0)
    return folder


def sheet(folder, *flags):
    path = folder / "sheet.png"
    assert main(["sheet", str(path), "--outputs_dir", str(folder), *flags]) == 0
    return Image.open(path).convert("RGB")


def test_pictures_lie_in_rows_in_the_order_they_were_drawn(tmp_path):
    image = sheet(gallery(tmp_path), "--columns", "2", "--side", "32")
    assert image.size == (2 * 48, 2 * 96)
    assert [image.getpixel(place) for place in ((24, 24), (72, 24), (24, 120))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    assert image.getpixel((72, 120)) == (255, 255, 255)


def test_a_decoded_picture_stands_beside_the_drawn_one(tmp_path):
    image = sheet(gallery(tmp_path, decoded=True), "--side", "32", "--number", "1")
    assert image.size == (88, 96)
    assert (image.getpixel((24, 24)), image.getpixel((64, 24))) == ((255, 0, 0), (0, 0, 0))


def test_each_prompt_is_written_below_its_picture(tmp_path):
    image = sheet(gallery(tmp_path), "--number", "1")
    below = np.asarray(image)[144:]
    assert below.min() < 100


def test_a_prompt_may_hold_any_separator(tmp_path):
    drawn = Picture(
        image=Image.new("RGB", (8, 8)), codes=np.zeros((2, 2)), seed=0, index=0, recipe={"prompt": "a\u2028b"}
    )
    Gallery(tmp_path).add(drawn, prompt="a\u2028b", place=0)
    assert sheet(tmp_path).size == (144, 192)


@pytest.mark.parametrize(
    ("name", "flags"), [("sheet.webp", ["--side", "9000"]), ("sheet.png", ["--side", "9000000", "--columns", "1"])]
)
def test_a_sheet_that_its_format_cannot_hold_is_refused_before_it_is_drawn(name, flags, tmp_path, capsys):
    assert main(["sheet", str(tmp_path / name), "--outputs_dir", str(gallery(tmp_path)), *flags]) == 2
    assert "pass a smaller --side" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "manifest.jsonl").unlink(), "No such file"),
        (lambda folder: (folder / "manifest.jsonl").write_text("{}\n"), "not what generate.py writes"),
        (lambda folder: (folder / "manifest.jsonl").write_text('{"prompt": "a"}\n'), "not what generate.py writes"),
        (lambda folder: (folder / "manifest.jsonl").write_text(""), "lists no pictures"),
        (lambda folder: (folder / "red" / "0.png").unlink(), "0.png: No such file"),
        (lambda folder: (folder / "red" / "0.png").write_bytes(b"x"), "not a picture that can be read"),
    ],
)
def test_outputs_that_cannot_be_shown_are_one_line(tmp_path, capsys, break_it, message):
    break_it(gallery(tmp_path))
    assert main(["sheet", str(tmp_path / "sheet.png"), "--outputs_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_does_not_take_the_place_of_one_of_its_pictures(tmp_path, capsys):
    picture = gallery(tmp_path) / "red" / "0.png"
    before = picture.read_bytes()
    assert main(["sheet", str(picture), "--outputs_dir", str(tmp_path)]) == 2
    assert "one of the pictures of the sheet" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_counts_below_one_are_refused(tmp_path, capsys):
    assert main(["sheet", str(tmp_path / "sheet.png"), "--columns", "0"]) == 2
    assert "columns is 0" in capsys.readouterr().err
