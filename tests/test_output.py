from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dalle3.errors import OutputError
from dalle3.output import Gallery, Picture, append_line, folder_name

RECIPE = {
    "prompt": "a red circle, großartig",
    "seed": 7,
    "index": 3,
    "settings": {"top_p": 0.9, "top_k": None},
    "size": [8, 8],
    "weights": {"dalle": "0123456789abcdef"},
    "versions": {"dalle3": "0.1.0"},
}


def picture(index: int = 0, *, score: float | None = None, shade: int = 9) -> Picture:
    image = Image.new("RGB", (8, 8), (shade, 20, 30))
    codes = np.arange(4).reshape(2, 2) + index
    return Picture(image=image, codes=codes, seed=7, index=index, score=score, recipe=RECIPE)


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_picture_lies_under_its_prompt_with_its_caption(tmp_path):
    Gallery(tmp_path).add(picture(), prompt="a red circle", place=0)
    assert names(tmp_path / "a_red_circle") == ["0.png", "caption.txt"]
    assert (tmp_path / "a_red_circle" / "caption.txt").read_text() == "a red circle"


def test_a_prompt_of_several_lines_has_one_folder_whatever_ends_them(tmp_path):
    for place in (0, 1):
        Gallery(tmp_path).add(picture(), prompt="a red\r\ncircle", place=place)
    assert names(tmp_path / "a_red__circle") == ["0.png", "1.png", "caption.txt"]


def test_codes_are_a_flat_int64_array(tmp_path):
    Gallery(tmp_path, codes=True).add(picture(5), prompt="x", place=5)
    codes = np.load(tmp_path / "x" / "5.npy", allow_pickle=False)
    assert codes.dtype == np.int64
    assert codes.tolist() == [5, 6, 7, 8]


def test_a_score_stands_in_the_name(tmp_path):
    assert Gallery(tmp_path).add(picture(score=0.31274), prompt="x", place=0).name == "0-0.3127.png"


def test_the_png_holds_the_recipe_and_the_line_other_tools_read(tmp_path):
    path = Gallery(tmp_path).add(picture(), prompt="x", place=0)
    text = Image.open(path).text
    assert json.loads(text["dalle3"]) == RECIPE
    assert text["parameters"] == (
        "a red circle, großartig\n"
        "Seed: 7, Index: 3, top_p: 0.9, Size: 8x8, Model hash: 0123456789, Version: dalle3 0.1.0"
    )


def test_the_manifest_has_a_line_for_each_picture(tmp_path):
    gallery = Gallery(tmp_path)
    for place in range(2):
        gallery.add(picture(place), prompt="x", place=place)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["x/0.png", "x/1.png"]
    assert lines[0]["seed"] == 7


def test_without_metadata_there_is_no_trace_of_the_recipe(tmp_path):
    path = Gallery(tmp_path, metadata=False).add(picture(), prompt="x", place=0)
    assert not Image.open(path).text
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_second_run_numbers_on_and_says_so(tmp_path, capsys):
    for shade in (1, 2):
        gallery = Gallery(tmp_path)
        for place in range(2):
            gallery.add(picture(place, shade=shade), prompt="x", place=place)
    assert names(tmp_path / "x") == ["0.png", "1.png", "2.png", "3.png", "caption.txt"]
    assert [Image.open(tmp_path / "x" / f"{i}.png").getpixel((0, 0))[0] for i in range(4)] == [1, 1, 2, 2]
    assert capsys.readouterr().err == f"{tmp_path / 'x'} holds pictures already; numbering on from 2\n"


def test_a_number_is_taken_whatever_kind_of_file_has_it(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("0-0.2500.png", "1.npy", "2.jpg"):
        (tmp_path / "x" / name).write_bytes(b"mine")
    for place in range(2):
        Gallery(tmp_path).add(picture(place, score=0.2), prompt="x", place=place)
    assert names(tmp_path / "x") == [
        *("0-0.2500.png", "1.npy", "2.jpg"),
        *("3-0.2000.png", "4-0.2000.png", "caption.txt"),
    ]


def test_a_picture_drawn_alone_keeps_its_number_where_it_is_free(tmp_path):
    assert Gallery(tmp_path).add(picture(3), prompt="x", place=3).name == "3.png"


def test_prompts_that_begin_alike_do_not_share_a_folder(tmp_path):
    prompts = ["y" * 100 + end for end in ("", "a", "b", "a")]
    folders = [Gallery(tmp_path).add(picture(), prompt=prompt, place=0).parent.name for prompt in prompts]
    assert folders == ["y" * 100, "y" * 100 + "-2", "y" * 100 + "-3", "y" * 100 + "-2"]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_prompt_is_a_safe_folder_name(prompt):
    name = folder_name(prompt)
    assert 0 < len(name.encode()) <= 240
    assert os.path.basename(name) == name
    assert not name.startswith(".")
    assert not set(name) & set('<>:"/\\|?*\0\n\t ')


def test_a_prompt_cannot_leave_the_outputs_folder(tmp_path):
    path = Gallery(tmp_path / "outputs").add(picture(), prompt="../../etc/passwd", place=0)
    assert path.resolve().parent.parent == (tmp_path / "outputs").resolve()


def _add_some(root, start):
    start.wait()
    gallery = Gallery(root, codes=True)
    for place in range(10):
        gallery.add(picture(place), prompt="x", place=place)


def test_runs_side_by_side_do_not_take_each_others_numbers(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    runs = [context.Process(target=_add_some, args=(tmp_path, start)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(list((tmp_path / "x").glob("*.png"))) == 20
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert len({json.loads(line)["file"] for line in lines}) == 20


@contextlib.contextmanager
def full_disk():
    """Files of this process cannot grow beyond 2,000 bytes. No fixture: pytest's own output may be such a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_part_of_a_picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    big = Picture(image=Image.fromarray(noise), codes=np.zeros((2, 2)), seed=0, index=0)
    with full_disk(), pytest.raises(OutputError, match=r"0\.png was not written: File too large"):
        Gallery(tmp_path).add(big, prompt="x", place=0)
    assert names(tmp_path / "x") == ["caption.txt"]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    append_line(tmp_path / "lines", "a" * 1500)
    with full_disk(), pytest.raises(OutputError, match="not written"):
        append_line(tmp_path / "lines", "b" * 1500)
    assert (tmp_path / "lines").read_text() == "a" * 1500 + "\n"


def test_a_name_that_says_no_format_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"end it in \.png"):
        picture().save(tmp_path / "circle")


def test_a_picture_shows_itself_in_a_notebook():
    assert picture()._repr_png_().startswith(b"\x89PNG")
