"""`dalle3 data check`: one report over folders, tars and lists; the exit code says whether all of it can be used."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dalle3.cli import main
from dalle3.data.check import CHUNK
from tests.data.conftest import png, write_tar


def check(capfd, *words) -> tuple[int, dict]:
    code = main(["data", "check", "--json", *map(str, words)])
    return code, json.loads(capfd.readouterr().out)


@pytest.fixture
def folder(tmp_path):
    """Three good pictures, one of them oblong and one without a caption."""
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "a.png").write_bytes(png((1, 0, 0)))
    (place / "b.png").write_bytes(png((2, 0, 0), (16, 8)))
    (place / "c.png").write_bytes(png((3, 0, 0)))
    (place / "a.txt").write_text("a red square\nsomething red\n")
    (place / "b.txt").write_text("a red square")
    return place


def test_a_good_data_set_is_described(folder, capfd):
    code, facts = check(capfd, folder)
    assert code == 0
    assert (facts["pictures"], facts["broken"]) == (3, {"count": 0, "first": []})
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.glob("*.png"))
    assert facts["captions"] == {"count": 3, "pictures_with_none": 1, "pictures_with_several": 1, "most": 2}
    assert facts["words"] == {"least": 2, "median": 3, "p95": 3, "most": 3}
    assert (facts["sizes"], facts["oblong"]) == ([[8, 8, 2], [16, 8, 1]], 1)
    assert facts["width_to_height"]["most"] == 2
    assert "tokens" not in facts


def test_broken_pictures_are_named_up_to_a_number_and_all_counted(folder, capfd):
    for name in "defg":
        (folder / f"{name}.jpg").write_bytes(b"")
    code, facts = check(capfd, folder, "--named", 2)
    assert (code, facts["pictures"], facts["broken"]["count"]) == (1, 3, 4)
    assert [line.split(": ")[0] for line in facts["broken"]["first"]] == [str(folder / "d.jpg"), str(folder / "e.jpg")]


def test_the_same_picture_in_two_sources_and_two_formats_is_found(folder, tmp_path, capfd):
    Image.open(folder / "b.png").save(folder / "b.bmp")
    tar = write_tar(tmp_path / "held_out.tar", {"0.png": png((3, 0, 0)), "0.txt": b"a red square"})
    code, facts = check(capfd, folder, tar)
    assert code == 0
    twins = [[str(folder / "b.bmp"), str(folder / "b.png")], [str(folder / "c.png"), f"{tar}:0"]]
    assert facts["duplicate_pictures"] == {"compared": "the same pixels after decoding", "count": 2, "first": twins}
    assert facts["duplicate_captions"] == {"count": 3, "most": [["a red square", 4]]}
    assert facts["sources"] == [{"name": str(folder), "pictures": 4}, {"name": str(tar), "pictures": 1}]


def test_pictures_of_other_shapes_with_the_same_bytes_are_no_duplicates(tmp_path, capfd):
    for name, size in (("a", (2, 8)), ("b", (8, 2))):
        (tmp_path / f"{name}.png").write_bytes(png((3, 0, 0), size))
    assert check(capfd, tmp_path)[1]["duplicate_pictures"]["count"] == 0


def test_captions_longer_than_the_model_reads_are_counted_and_named(folder, capfd):
    code, facts = check(capfd, folder, "--text_seq_len", 2)
    assert code == 1
    assert {name: facts["tokens"][name] for name in ("most", "too_long")} == {"most": 3, "too_long": 2}
    assert facts["tokens"]["first"] == [f"{folder / name}.png: 3 tokens" for name in "ab"]
    assert check(capfd, folder, "--text_seq_len", 3)[0] == 0


def test_a_cut_tar_is_broken_and_what_lies_before_the_cut_is_looked_at(tmp_path, capfd):
    samples = {f"{i}.{end}": content for i in range(8) for end, content in (("png", png()), ("txt", b"a"))}
    tar = write_tar(tmp_path / "a.tar", samples)
    tar.write_bytes(tar.read_bytes()[: 5 * 2048 + 700])
    code, facts = check(capfd, tmp_path / "a.tar")
    assert (code, facts["pictures"], facts["broken"]["count"]) == (1, 6, 1)
    assert facts["captions"]["pictures_with_none"] == 1  # the cut parts the sixth from its caption
    assert "a.tar: the file ends at byte 10940 without a tar's end mark" in facts["broken"]["first"][0]


def test_several_processes_find_what_one_does(tmp_path, capfd):
    rows = []
    for i in range(CHUNK + 8):
        (tmp_path / f"{i}.png").write_bytes(png((i % 50, 0, 0)) if i != 3 else b"broken")
        rows.append(json.dumps({"image": f"{i}.png", "caption": f"number {i % 40}"}))
    (tmp_path / "all.jsonl").write_text("\n".join(rows))
    (code, one), (_, two) = (check(capfd, tmp_path / "all.jsonl", "--num_workers", number) for number in (0, 2))
    assert (code, one.pop("settings")["num_workers"], two.pop("settings")["num_workers"]) == (1, 0, 2)
    assert one == two
    assert one["duplicate_pictures"]["count"] == CHUNK + 8 - 1 - 50


def test_the_report_for_people_says_the_same(folder, capfd):
    (folder / "d.png").write_bytes(b"")
    assert main(["data", "check", str(folder), "--bpe_path", str(folder / "missing.model")]) == 2
    capfd.readouterr()
    assert main(["data", "check", str(folder), "--text_seq_len", "2"]) == 1
    out = capfd.readouterr().out
    assert "pictures      3 (0.0 MB)\nbroken        1:\n" in out
    assert "captions      3; 1 pictures have several (up to 2), 1 have none\n" in out
    assert "too long      2 of more than --text_seq_len 2 tokens:\n" in out
    assert "  2 times 'a red square'" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["missing"], "missing does not exist; name a folder of pictures"),
        ([__file__], "is a file; name a folder of pictures"),
        (["{00..01}.tar"], "00.tar does not exist; check the path or the pattern"),
        (["--named", "-1", "."], "named is -1; it must be at least 0"),
    ],
)
def test_a_mistake_is_one_line(given, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *given]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
