"""What img2dataset writes, in both its forms, is read as it is (its writer.py: `files` and `webdataset`).

A picture that could not be fetched is only in the parquet; a caption that was null is an empty text.
"""

from __future__ import annotations

import json

import pytest

from dalle3.data.base import BrokenSampleError
from dalle3.data.open import open_pictures
from tests.data.conftest import png, write_tar

SHARDS = {"00000": {"000000000": "a red thing", "000000002": ""}, "00001": {"000010001": "a blue thing"}}


def members(captions):
    for key, caption in captions.items():
        row = {"caption": caption or None, "url": "https://a/b.jpg", "key": key, "status": "success", "width": 8}
        yield from ((f"{key}.jpg", png()), (f"{key}.txt", caption.encode()))
        yield f"{key}.json", json.dumps(row, indent=4).encode()


@pytest.fixture(params=["files", "webdataset"])
def output(request, tmp_path):
    for shard, captions in SHARDS.items():
        (tmp_path / f"{shard}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
        if request.param == "webdataset":
            write_tar(tmp_path / f"{shard}.tar", dict(members(captions)))
            continue
        (tmp_path / shard).mkdir()
        for name, content in members(captions):
            (tmp_path / shard / name).write_bytes(content)
    return tmp_path


def test_its_folder_is_a_data_set(output):
    source = open_pictures(str(output))
    assert len(source) == 3
    assert [source.load(i).captions for i in (0, 2)] == [("a red thing",), ("a blue thing",)]


def test_a_null_caption_is_skipped_where_captions_are_read_and_only_there(output):
    with pytest.raises(BrokenSampleError, match=r"000000002.*: the caption is empty"):
        open_pictures(str(output)).load(1)
    assert open_pictures(str(output), needs_captions=False).load(1).captions == ()
