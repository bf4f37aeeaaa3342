"""Tars behind addresses: fetched once and whole, through a connection that breaks off."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dalle3.data.loader import Stream, batches
from dalle3.data.open import open_pictures
from dalle3.data.remote import TRIES, fetch_all, place_of
from dalle3.data.transforms import Crop, CropConfig
from dalle3.errors import DataError, OutputError
from tests.data.conftest import png, write_tar
from tests.data.server import serving


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    for tar in range(3):
        samples = {f"{tar}{i}": 40 * tar + 10 * i for i in range(4)}
        members = {f"{key}.png": png((red, 0, 0)) for key, red in samples.items()}
        write_tar(folder / f"{tar}.tar", {**members, **{f"{key}.txt": key.encode() for key in samples}})
    with serving(folder) as running:
        yield running


def fetched(server, folder, name="0.tar"):
    return fetch_all([f"{server.address}/{name}"], folder, pause=0.01)[0].read_bytes()


@pytest.mark.parametrize("continues", [True, False])
def test_a_connection_that_breaks_off_is_taken_up(server, continues, tmp_path, capfd):
    server.continues, server.cuts = continues, [700, 2000]
    assert fetched(server, tmp_path / "here") == (server.folder / "0.tar").read_bytes()
    places = [span for _, span in server.asked]
    assert places == [None, "bytes=700-", "bytes=2700-" if continues else "bytes=2000-"]
    assert "the connection broke off after 700 of 10240 bytes; trying again from byte 700" in capfd.readouterr().err


def test_a_file_that_is_here_is_not_asked_for_again(server, tmp_path):
    fetched(server, tmp_path)
    fetched(server, tmp_path)
    assert len(server.asked) == 1


def test_of_several_that_want_a_file_one_fetches_it(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetched(server, tmp_path / "here"), range(4)))
    assert set(found) == {(server.folder / "0.tar").read_bytes()}
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.failures = [503, 429]
    assert fetched(server, tmp_path / "here") == (server.folder / "0.tar").read_bytes()


def test_a_missing_file_is_one_line_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"9\.tar cannot be fetched: the server says 404 .*; check the address"):
        fetched(server, tmp_path / "here", "9.tar")
    assert len(server.asked) == 1


def test_a_network_that_is_down_is_one_line_and_leaves_nothing(server, tmp_path):
    server.cuts = [0] * TRIES
    with pytest.raises(DataError, match=f"broke off after 0 of 10240 bytes; {TRIES} attempts failed"):
        fetched(server, tmp_path / "here")
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file()]


def test_where_nothing_listens_is_one_line(tmp_path):
    with pytest.raises(DataError, match="Connection refused; 5 attempts failed"):
        fetch_all(["http://127.0.0.1:9/a.tar"], tmp_path, pause=0.001)


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"0\.tar was not written: Not a directory"):
        fetched(server, tmp_path / "file")


def test_an_address_that_is_none_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot be fetched: .*; check the address"):
        fetch_all(["http://a b/c.tar"], tmp_path)


def first_batch(name, **options):
    stream = Stream(open_pictures(name, columns="png,txt"), Crop(8, CropConfig()), seed=3)
    return next(itertools.islice(batches(stream, 8, **options), 1))


def test_tars_behind_addresses_give_the_batches_of_the_same_tars_here(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "home"))
    for consumed in (0, 8):
        here = first_batch(str(server.folder / "{0..2}.tar"), consumed=consumed)
        there = first_batch(f"{server.address}/{{0..2}}.tar", consumed=consumed)
        assert here.captions == there.captions
        assert torch.equal(here.content, there.content)
    assert place_of(f"{server.address}/2.tar", tmp_path / "home" / "tars").is_file()


def test_a_command_in_place_of_an_address_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match="give their paths or their http addresses"):
        open_pictures("pipe:gsutil cat gs://bucket/{00..09}.tar", columns="jpg,txt")
