"""Inputs of the second stage: pictures behind addresses, cutting and averaging."""

from __future__ import annotations

import io
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from dalle3.errors import CodesError, ImageError
from dalle3.inputs import find_inputs, read_codes, read_picture, square


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


class Pictures(BaseHTTPRequestHandler):
    """Answers /picture.png with a picture, and everything else with 404."""

    def do_GET(self) -> None:
        buffer = io.BytesIO()
        if self.path == "/codes.npy":
            np.save(buffer, np.arange(16))
        else:
            picture(12, 9).save(buffer, format="PNG")
        if self.path == "/cut.png":
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"cut")
            return
        if self.path not in ("/picture.png", "/codes.npy", "/picture.npy"):
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(buffer.getvalue())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def address():
    with HTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_picture_behind_an_address_is_read(address):
    assert read_picture(f"{address}/picture.png").tobytes() == picture(12, 9).tobytes()
    assert find_inputs([f"{address}/picture.png"]) == [f"{address}/picture.png"]


def test_codes_behind_an_address_are_read(address):
    assert torch.equal(read_codes(f"{address}/codes.npy", num_tokens=16), torch.arange(16).view(4, 4))


@pytest.mark.parametrize(("name", "reason"), [("other.npy", "Not Found"), ("picture.npy", "it is not a whole .npy")])
def test_codes_that_are_not_behind_an_address_are_one_line(name, reason, address):
    with pytest.raises(CodesError, match=rf"/{name} cannot be read: {reason}"):
        read_codes(f"{address}/{name}", num_tokens=16)


def test_a_missing_picture_behind_an_address_is_named(address):
    with pytest.raises(ImageError, match=r"/other.png cannot be read: Not Found"):
        read_picture(f"{address}/other.png")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("http://exa mple.com/a.png", "URL can't contain control characters"),
        ("http://localhost:port/a.png", "nonnumeric port: 'port'"),
        ("http://[::1/a.png", "Invalid IPv6 URL"),
    ],
)
def test_an_address_that_is_none_is_named_with_what_is_wrong(name, reason):
    with pytest.raises(ImageError, match=re.escape(f"{name} cannot be read: {reason}")):
        read_picture(name)


def test_an_answer_that_breaks_off_is_named(address):
    with pytest.raises(ImageError, match=r"/cut.png cannot be read: IncompleteRead\(3 bytes read, 7 more expected\)"):
        read_picture(f"{address}/cut.png")


def test_a_folder_does_not_stand_for_what_was_decoded_from_its_pictures_before(tmp_path):
    for name in ("a.jpg", "a-decoded.png", "a-decoded-2.png", "b-decoded.png", "c-decoded.npy.png"):
        (tmp_path / name).touch()
    others = [str(tmp_path / name) for name in ("a.jpg", "b-decoded.png", "c-decoded.npy.png")]
    assert find_inputs([str(tmp_path)]) == others
    assert find_inputs([str(tmp_path / "a-decoded.png")]) == [str(tmp_path / "a-decoded.png")]  # named, it is meant


def test_a_folder_stands_for_its_codes_or_its_pictures_or_those_of_the_folders_in_it(tmp_path):
    for name in ("a/0.png", "a/0.npy", "b/deep/1.npy", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_inputs([str(tmp_path / "a")]) == [str(tmp_path / "a/0.npy")]
    assert find_inputs([str(tmp_path / "b")]) == [str(tmp_path / "b/2.jpg")]
    assert find_inputs([str(tmp_path)]) == [str(tmp_path / "a/0.npy"), str(tmp_path / "b/deep/1.npy")]


def test_the_middle_is_cut_out_and_averaged():
    found = square(picture(12, 8), 4)
    expected = torch.from_numpy(np.array(picture(12, 8))).permute(2, 0, 1).float()[:, :, 2:10] / 255
    expected = expected.reshape(3, 4, 2, 4, 2).mean(dim=(2, 4))
    torch.testing.assert_close(found[0], expected)


def test_a_picture_of_the_right_size_is_left_as_it_is():
    found = square(picture(8, 8), 8)
    assert torch.equal((found[0] * 255).round().byte(), torch.from_numpy(np.array(picture(8, 8))).permute(2, 0, 1))


def test_pictures_stand_upright_and_on_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert read_picture(str(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter
    picture(12, 8).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(str(tmp_path / "turned.jpg")).size == (8, 12)
