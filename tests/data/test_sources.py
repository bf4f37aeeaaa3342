"""Folders, tars, lists and shards of codes: what is read, and what is left out and named."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from PIL import Image

from dalle3.data.base import BrokenSampleError, captions_of
from dalle3.data.codes import Codec, CodeShards, write_shard
from dalle3.data.folder import CaptionedFolder, CaptionList
from dalle3.data.open import expand, open_pictures
from dalle3.data.tars import TarShards
from dalle3.errors import DataError
from tests.data.conftest import png, write_tar

CODEC = Codec(kind="discrete_vae", vocab=16, grid=2, sha256="ab")


def test_a_folder_gives_pictures_with_the_lines_of_their_texts(folder):
    source = CaptionedFolder(folder)
    sample = source.load(0)
    assert len(source) == 10
    assert sample.content.size == (8, 8)
    assert sample.captions == ("picture 0", "number 0")


def test_a_picture_without_caption_is_left_out_and_named(folder):
    (folder / "0.txt").unlink()
    source = CaptionedFolder(folder)
    assert len(source) == 9
    assert source.skipped == [f"{folder / '0.png'}: no caption file beside it"]


def test_where_captions_are_not_needed_pictures_alone_will_do(folder):
    (folder / "0.txt").unlink()
    assert len(CaptionedFolder(folder, needs_captions=False)) == 10


def test_an_empty_folder_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataError, match="holds no pictures; it should hold"):
        CaptionedFolder(tmp_path)


def test_pictures_without_any_caption_are_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(DataError, match="holds 1 pictures and none has a caption"):
        CaptionedFolder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", png()[:40]])
def test_a_broken_picture_is_named(folder, content):
    (folder / "0.png").write_bytes(content)
    with pytest.raises(BrokenSampleError, match=r"0\.png: not a readable picture"):
        CaptionedFolder(folder).load(0)


def test_an_empty_caption_is_named(folder):
    (folder / "0.txt").write_text(" \n")
    with pytest.raises(BrokenSampleError, match=r"0\.txt: the caption is empty"):
        CaptionedFolder(folder).load(0)


def test_captions_alone_are_read_without_the_picture(folder):
    (folder / "0.png").write_bytes(b"broken")
    tar = write_tar(folder / "a.tar", {"0.png": b"broken", "0.txt": b"a\nb"})
    assert captions_of(CaptionedFolder(folder), 0) == ("picture 0", "number 0")
    assert captions_of(TarShards([tar]), 0) == ("a", "b")


def test_what_is_transparent_is_shown_on_white(folder):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(folder / "0.png")
    assert CaptionedFolder(folder).load(0).content.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_as_the_camera_says(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 4)).save(folder / "0.jpg", exif=exif)
    (folder / "0.png").unlink()
    assert CaptionedFolder(folder).load(0).content.size == (4, 8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_exif_that_is_broken_spoils_no_picture(folder):
    Image.new("RGB", (8, 4)).save(folder / "0.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01garbage")
    (folder / "0.png").unlink()
    assert CaptionedFolder(folder).load(0).content.size == (8, 4)


def test_a_list_gives_paths_relative_to_itself(folder):
    rows = [{"image": "0.png", "caption": "one"}, {"image": "sub/1.png", "captions": ["two", "three"]}]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_pictures(str(folder / "all.jsonl"))
    assert [source.load(i).captions for i in range(2)] == [("one",), ("two", "three")]


@pytest.mark.parametrize(("line", "message"), [("{", "not JSON"), ("[]", "list; expected"), ("{}", "no `image`")])
def test_a_broken_line_of_a_list_is_an_error_with_its_number(tmp_path, line, message):
    (tmp_path / "all.jsonl").write_text(f'{{"image": "a.png", "caption": "a"}}\n{line}\n')
    with pytest.raises(DataError, match=f"line 2: {message}"):
        CaptionList(tmp_path / "all.jsonl")


def test_tars_are_read_through_their_offsets(tmp_path):
    write_tar(
        tmp_path / "a.tar", {"x/000.jpg": png(), "x/000.txt": b"first", "x/001.jpg": png(), "x/001.txt": b"second"}
    )
    source = TarShards([tmp_path / "a.tar"])
    assert [source.load(i).captions for i in (1, 0)] == [("second",), ("first",)]
    assert source.name(0).endswith("a.tar:x/000")


def test_tars_take_the_columns_asked_for(tmp_path):
    row = json.dumps({"captions": ["long", "longer"]}).encode()
    write_tar(tmp_path / "a.tar", {"0.png": b"wrong", "0.small.png": png(), "0.txt": b"short", "0.json": row})
    source = open_pictures(str(tmp_path / "a.tar"), columns="small.png,json")
    assert source.load(0).captions == ("long", "longer")


def test_a_tar_cut_in_the_middle_gives_what_lies_before_the_cut(tmp_path):
    members = {f"{i}.{suffix}": content for i in range(8) for suffix, content in (("png", png()), ("txt", b"a"))}
    tar = write_tar(tmp_path / "a.tar", members)
    tar.write_bytes(tar.read_bytes()[: 5 * 2048 + 700])
    source = TarShards([tar])
    assert len(source) == 5
    assert "the samples before that are used" in source.skipped[0]
    assert [source.load(i).captions for i in range(5)] == [("a",)] * 5


def test_a_compressed_tar_says_what_to_do(tmp_path):
    tar = write_tar(tmp_path / "b.tar", {"0.png": png(), "0.txt": b"a"})
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(DataError, match="gunzip it first"):
        TarShards([tmp_path / "a.tar"])


def test_tars_without_the_columns_asked_for_are_an_error(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"0.png": png(), "0.txt": b"a"})
    with pytest.raises(DataError, match=r"none of 1 samples in 1 tars has a picture \(img\)"):
        TarShards([tar], columns=("img", "cap"))


def test_braces_are_expanded_as_the_shell_does():
    names = [str(path) for path in expand("d/{a,b}-{08..10}.tar")]
    assert names == ["d/a-08.tar", "d/a-09.tar", "d/a-10.tar", "d/b-08.tar", "d/b-09.tar", "d/b-10.tar"]


@pytest.mark.parametrize("pattern", ["*.tar", "{a,b}*.tar", "[ab]-?.tar"])
def test_tars_are_found_by_a_pattern_of_the_shell(tmp_path, pattern):
    for name, caption in (("b-0", b"second"), ("a-0", b"first")):
        write_tar(tmp_path / f"{name}.tar", {"0.png": png(), "0.txt": caption})
    source = open_pictures(str(tmp_path / pattern))
    assert [source.load(i).captions for i in range(len(source))] == [("first",), ("second",)]


def test_a_tar_whose_name_looks_like_a_pattern_is_meant_by_it(tmp_path):
    for name, caption in (("a1", b"another"), ("a[1]", b"meant")):
        write_tar(tmp_path / f"{name}.tar", {"0.png": png(), "0.txt": caption})
    source = open_pictures(str(tmp_path / "a[1].tar"))
    assert [source.load(i).captions for i in range(len(source))] == [("meant",)]


def test_a_pattern_that_finds_nothing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no-\*\.tar does not exist; check the path or the pattern"):
        open_pictures(str(tmp_path / "no-*.tar"))


def test_codes_survive_a_shard(tmp_path):
    codes = torch.randint(16, (3, 2, 2), generator=torch.Generator().manual_seed(0))
    write_shard(tmp_path / "c", codes, captions=[("a", "b"), (), ("ä",)], codec=CODEC)
    source = CodeShards([tmp_path / "c"])
    assert torch.equal(torch.stack([source.load(i).content for i in range(3)]), codes)
    assert [source.load(i).captions for i in range(3)] == [("a", "b"), (), ("ä",)]
    assert source.codec == CODEC


def test_shards_of_different_tokenizers_do_not_mix(tmp_path):
    write_shard(tmp_path / "c", torch.zeros(1, 2, 2), captions=[()], codec=CODEC)
    other = Codec(kind="vqgan", vocab=16, grid=2, sha256="cd")
    write_shard(tmp_path / "d", torch.zeros(1, 2, 2), captions=[()], codec=other)
    with pytest.raises(DataError, match="train on one of them"):
        CodeShards([tmp_path / "c", tmp_path / "d"])
