"""decode.py as its users call it, mostly within this process."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle3.checkpoint import save_checkpoint
from dalle3.cli import Parser, main
from dalle3.cli import decode as command
from dalle3.models.vqgan import VQGAN, VQGANConfig
from dalle3.output import BesideInputs
from tests import tiny
from tests.test_decode import write_stage_two
from tests.train.vqgans import SIZES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A machine with a default model."""
    home = tmp_path_factory.mktemp("home")
    write_stage_two(home / "default")
    return home


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    write_codes("0.npy")


def write_codes(name: str, *, seed: int = 0, side: int = 4) -> Path:
    """A file of codes as stage one writes them."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    np.save(name, np.random.default_rng(seed).integers(0, tiny.CODES, side**2))
    return Path(name)


def write_picture(name: str, size: tuple[int, int] = (40, 24)) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(name)
    return Path(name)


def size(name: str) -> tuple[int, int]:
    with Image.open(name) as picture:
        return picture.size


def decode(line: str) -> int:
    return main(["decode", *shlex.split(line)])


def refused(line: str, capsys) -> str:
    """The one line with which `line` is refused, before anything is drawn."""
    before = pngs()
    try:
        code = decode(line)
    except SystemExit as error:  # argparse's own way
        code = error.code
    written = capsys.readouterr()
    assert (code, written.out) == (2, "")
    assert pngs() == before
    (message,) = written.err.splitlines()
    return message


def pngs() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*.png"))


def test_codes_become_a_picture_named_after_them(capsys):
    assert decode("--input 0.npy") == 0
    assert pngs() == ["0.png"]
    assert capsys.readouterr().out == "0.png\n"
    assert size("0.png") == (16, 16)


def test_the_lines_of_dall_3_parse_as_written():
    parser = Parser()
    command.add_arguments(parser)
    flags = (
        "--model_path m --vae_path v --vqgan_config_path c --text t --image_prompts i --num_batches 1 --batch_size 1 "
        "--clip_guidance_scale 1000 --tv_scale 0 --range_scale 0 --cutn 48 --input 0.npy --output_size 512 --seed 0 "
        "--stop_at 1000 --dvae_mode --clip_guidance --cpu"
    )
    parser.parse_args(shlex.split(flags + " --model_size 256"))


def test_dall_3s_files_are_found_where_its_readme_puts_them():
    save_checkpoint(tiny.codec(), Path("vae"))
    save_checkpoint(tiny.decoder(), Path("models/model-latest.pt"))  # a folder, though: its name is what counts here
    assert decode("--model_path models/model-latest.pt --vae_path vae --input 0.npy --text 'your prompt here'") == 0


def test_many_files_and_a_folder_of_them():
    for number in range(3):
        write_codes(f"in/{number}.npy", seed=number)
    write_picture("in/0.png")
    assert decode("--input in 0.npy --outputs_dir out") == 0
    assert pngs() == ["in/0.png", "out/0-decoded.png", "out/0.png", "out/1.png", "out/2.png"]


def test_a_folder_without_codes_stands_for_its_pictures():
    write_picture("in/a.png")
    write_picture("in/b.jpg", (16, 16))
    assert decode("--input in") == 0
    assert pngs() == ["in/a-decoded.png", "in/a.png", "in/b.png"]


def test_a_picture_becomes_the_codes_of_its_middle():
    write_picture("a.png", (40, 20))
    Image.open("a.png").crop((10, 0, 30, 20)).save("b.png")
    assert decode("--input a.png b.png --output_size 32") == 0
    first, second = (Image.open(f"{name}-decoded.png") for name in "ab")
    assert first.size == (32, 32)
    assert first.tobytes() == second.tobytes()


def test_nothing_is_overwritten():
    for _ in range(3):
        decode("--input 0.npy")
    assert pngs() == ["0-decoded-2.png", "0-decoded.png", "0.png"]


def test_several_pictures_of_an_input_are_numbered_and_numbered_on():
    decode("--input 0.npy --num_batches 2 --batch_size 2")
    assert pngs() == ["0-0.png", "0-1.png", "0-2.png", "0-3.png"]
    assert len({Image.open(name).tobytes() for name in pngs()}) == 4
    decode("--input 0.npy --num_images 2")
    assert pngs()[-2:] == ["0-4.png", "0-5.png"]


@pytest.mark.parametrize("codes", [np.arange(16), np.arange(16).reshape(4, 4), np.arange(16, dtype=np.uint8)[None]])
def test_codes_of_every_shape_are_read(codes):
    np.save("x.npy", codes)
    assert decode("--input x.npy") == 0


def test_the_recipe_is_in_the_picture():
    decode("--input 0.npy --text 'a red circle' --clip_guidance --cutn 3 --seed 5")
    recipe = json.loads(Image.open("0.png").text["dalle3"])
    assert (recipe["prompt"], recipe["seed"], recipe["input"]) == ("a red circle", 5, "0.npy")
    how = {"sampler": "dpmpp_2m", "timesteps": 4, "guidance_scale": 1.0}
    assert recipe["settings"] == {"clip_guidance": True, "cutn": 3, **how}
    decode("--input 0.npy --no-metadata --outputs_dir plain")
    assert not Image.open("plain/0.png").text


def test_one_picture_can_be_made_again_by_its_number():
    decode("--input 0.npy --num_images 3 --seed 2")
    decode("--input 0.npy --index 2 --seed 2 --outputs_dir again")
    assert Image.open("again/0.png").convert("RGB").tobytes() == Image.open("0-2.png").convert("RGB").tobytes()


def test_the_respacing_and_the_tile_are_in_the_recipe():
    decode("--input 0.npy --timestep_respacing 3,2 --upsample 32 --tile 16")
    with Image.open("0.png") as picture:
        recipe = json.loads(picture.text["dalle3"])
    how = {"sampler": "dpmpp_2m", "timesteps": 5, "guidance_scale": 1.0}
    assert recipe["settings"] == {"timestep_respacing": "3,2", "upsample": 32, **how}
    assert recipe["tile"] == 16


@pytest.mark.parametrize("prompt", ["--text 'your prompt here'", "--image_prompts a.png"])
def test_a_prompt_without_clip_guidance_says_so(prompt, capsys):
    assert decode(f"--input 0.npy {prompt}") == 0
    assert "they steer with --clip_guidance" in capsys.readouterr().err


@pytest.fixture
def shown(monkeypatch):
    """What lies there after each preview, and may be added to."""
    seen: list[list[str]] = []
    show = BesideInputs.show

    def seeing(gallery, *args, **more):
        show(gallery, *args, **more)
        seen.append(pngs())

    monkeypatch.setattr(BesideInputs, "show", seeing)
    return seen


def test_previews_are_shown_and_then_gone(shown):
    assert decode("--input 0.npy --preview_every 1") == 0
    assert shown == [["0-preview.png"]] * 3
    assert pngs() == ["0.png"]
    decode("--input 0.npy --preview_every 3 --num_images 2 --outputs_dir out")
    assert shown[3:] == [["0.png", "out/0-0-preview.png"], ["0.png", "out/0-0.png", "out/0-1-preview.png"]]


def test_a_picture_that_is_called_as_the_preview_would_be_is_kept(shown):
    mine = write_picture("0-preview.png").read_bytes()
    assert decode("--input 0.npy --preview_every 3") == 0
    assert shown == [["0-preview-2.png", "0-preview.png"]]
    assert pngs() == ["0-preview.png", "0.png"]
    assert Path("0-preview.png").read_bytes() == mine


def test_what_another_run_wrote_meanwhile_is_kept(monkeypatch):
    show = BesideInputs.show

    def meanwhile(*args, **more):
        show(*args, **more)
        Path("0.png").write_bytes(b"another's")

    monkeypatch.setattr(BesideInputs, "show", meanwhile)
    assert decode("--input 0.npy --preview_every 3") == 0
    assert pngs() == ["0-decoded.png", "0.png"]
    assert Path("0.png").read_bytes() == b"another's"


def test_a_name_that_is_too_long_is_one_line(capsys):
    name = Path("x" * 248 + ".npy")
    Path("0.npy").rename(name)
    name.with_suffix(".png").touch()
    assert decode(f"--input {name} --preview_every 0") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("was not written: File name too long")


def test_a_picture_is_enlarged():
    assert decode("--input 0.npy --upsample 64") == 0
    assert size("0.png") == (64, 64)


def test_super_res_is_an_upsampler_given_as_the_model(home):
    write_picture("input.png")
    assert decode(f"--model_path {home}/default/upsampler --input input.png --output_size 72") == 0
    assert size("input-decoded.png") == (72, 72)


def test_an_unreadable_picture_is_named_and_left_out(capsys):
    write_picture("in/a.png")
    Path("in/b.png").write_bytes(b"not a picture")
    Path("in/c.png").write_bytes(Path("in/a.png").read_bytes()[:200])
    assert decode("--input in") == 1
    written = capsys.readouterr()
    assert written.out == "in/a-decoded.png\n"
    for name in ("b", "c"):
        assert f"warning: left out: in/{name}.png cannot be read: it is not a whole picture" in written.err


def test_bad_codes_among_good_ones_are_named_and_left_out(capsys):
    np.save("bad.npy", np.full(16, tiny.CODES))
    assert decode("--input 0.npy bad.npy") == 1
    assert "left out: bad.npy: codes between 16 and 16; this codebook has entries 0 to 15" in capsys.readouterr().err


BAD_CODES = {
    "large.npy": (np.full(16, 99), "large.npy: codes between 99 and 99; this codebook has entries 0 to 15"),
    "negative.npy": (np.full(16, -1), "negative.npy: codes between -1 and -1"),
    "uneven.npy": (np.zeros(15, int), "uneven.npy holds 15 codes of shape (15,); expected those of one square picture"),
    "stack.npy": (np.zeros((4, 16), int), "stack.npy holds 64 codes of shape (4, 16)"),
    "pile.npy": (np.zeros((16, 4, 4), int), "pile.npy holds 256 codes of shape (16, 4, 4)"),
    "empty.npy": (np.zeros(0, int), "empty.npy holds 0 codes"),
    "floats.npy": (np.zeros(16), "floats.npy holds float64; codes are integers"),
    "odd.npy": (np.zeros(25, int), "odd.npy: 5x5 codes would make 20 pixels a side"),
}


@pytest.mark.parametrize("name", BAD_CODES)
def test_bad_codes_are_one_line(name, capsys):
    array, message = BAD_CODES[name]
    np.save(name, array)
    assert message in refused(f"--input {name}", capsys)


HEADER = b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (%s)%s, }"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 the beginning of a zip, as an .npz has it",
        (HEADER % (b"16,", b"")).ljust(127) + b"\n" + bytes(100),
        (HEADER % (b"16,", b" (")).ljust(127) + b"\n" + bytes(128),
        (HEADER % (b"100000000000000,", b"")).ljust(127) + b"\n" + bytes(128),
    ],
    ids=["empty", "zip", "short", "unclosed", "huge"],
)
def test_a_file_that_is_no_whole_npy_is_one_line(content, capsys):
    Path("x.npy").write_bytes(content)
    assert "x.npy cannot be read: it is not a whole .npy of numbers" in refused("--input x.npy", capsys)


def test_pickled_codes_are_refused(capsys):
    np.save("evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "evil.npy cannot be read: it is not a whole .npy of numbers" in refused("--input evil.npy", capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: --input"),
        ("--input absent.npy", "absent.npy: no such file"),
        ("--input absent.png", "absent.png cannot be read: No such file"),
        ("--input {ROOT}/README.md", "README.md cannot be read: it is not a whole picture"),
        ("--input {ROOT}/dalle3/cli", "hold neither .npy files of codes nor pictures"),
        ("--input absent.npy absent.png", "none of 2 inputs can be read"),
        ("--input 0.npy --output_size 100", "4x4 codes, which make 16 pixels a side; output_size is 100"),
        ("--input {PICTURE} --output_size 20", "output_size is 20; the decoder draws multiples of 8"),
        ("--input {PICTURE} {PICTURE} --output_size 20", "decode: output_size is 20; the decoder draws multiples of 8"),
        ("--input 0.npy --upsample 35", "upsample is 35; the upsampler draws multiples of 2"),
        ("--input 0.npy --clip_guidance", "name them with text or image_prompts"),
        ("--input 0.npy --clip_guidance --text 'a:1|b:-1'", "sum to zero"),
        ("--input 0.npy --clip_guidance --text a --clip {HOME}/default", "is a dalle, not a CLIP, which --clip takes"),
        ("--input 0.npy --clip_guidance --text a --clip {HOME}/default/decoder", "is a unet, not a CLIP"),
        ("--input 0.npy --model_path {HOME}/default/clip", "is a clip, not a diffusion decoder or an upsampler"),
        (
            "--input 0.npy --vae_path {HOME}/default/decoder",
            "is a unet, not an image tokenizer, which --vae_path takes",
        ),
        ("--input 0.npy --upsample 32 --upsampler {HOME}/default/decoder", "is a unet, not an upsampler, which"),
        ("--input 0.npy --model_path {HOME}/default/upsampler", "0.npy holds codes, and --model_path an upsampler"),
        ("--input 0.npy --upsampler {HOME}/default/upsampler", "--upsampler is of use with --upsample only"),
        ("--input 0.npy --label 3", "label is 3, and nothing here is conditioned on classes"),
        ("--input 0.npy --model_size 256", "--model_size is 256, and"),
        ("--input 0.npy --model_size 100", "argument --model_size: invalid choice: '100'"),
        ("--input 0.npy --steps 0", "steps is 0"),
        ("--input 0.npy --index -1", "index is -1"),
        ("--input 0.npy --steps 5 --timestep_respacing 5", "leave one out"),
        ("--input 0.npy --sampler euler", "argument --sampler: invalid choice: 'euler'"),
        ("--input 0.npy --guidance_scale nan", "guidance_scale is nan"),
        ("--input 0.npy --max_memory 0.00001", "GB, measured, and --max_memory leaves"),
        ("--input 0.npy --cpu --device cuda", "--cpu and --device cuda contradict"),
        ("--input 0.npy --dtype float16 --cpu", "--dtype float16 needs a GPU"),
        ("--input 0.npy --outputs_dir 0.npy", "0.npy is a file; name a folder"),
        ("--input 0.npy --outputs_dir 0.npy/in_it", "0.npy/in_it was not written: Not a directory"),
        ("--input 0.npy --model_path absent.pt", "absent.pt: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(line, message, capsys, home):
    line = line.replace("{ROOT}", str(ROOT)).replace("{HOME}", str(home))
    if "{PICTURE}" in line:
        line = line.replace("{PICTURE}", str(write_picture("a.png")))
    assert message in refused(line, capsys)


@pytest.mark.parametrize("inside", [True, False])
def test_dvae_mode_is_a_check_wherever_the_image_tokenizer_is_found(inside, capsys):
    codec = tiny.checkpoint("vqgan", VQGANConfig(**SIZES), VQGAN)
    decoder = tiny.decoder(emb_input_dims=codec.config.embed_dim)
    save_checkpoint(dataclasses.replace(decoder, codec=codec if inside else None), Path("m/decoder"))
    save_checkpoint(codec, Path("m/codec"))
    line = refused("--input 0.npy --dvae_mode --model_path m", capsys)
    assert "is a DiscreteVAE, and it is a vqgan; leave it out" in line


def test_without_a_decoder_the_line_says_where_one_belongs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "bare"))
    monkeypatch.setattr("dalle3.shipped.ASSETS", tmp_path / "assets")
    assert "or pass --model_path" in refused("--input 0.npy", capsys)
    tiny.write_model(tmp_path / "bare" / "default")
    assert "pass a decoder as --model_path" in refused("--input 0.npy", capsys)


def test_ctrl_c_keeps_what_is_finished():
    line = [
        sys.executable,
        str(ROOT / "decode.py"),
        "--input",
        "0.npy",
        "--num_images",
        "100000",
        "--preview_every",
        "1",
    ]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line == "0-3.png\n":
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted; what was finished is kept\n")
    assert "Traceback" not in error
    finished = [name for name in pngs() if re.fullmatch(r"0-\d+\.png", name)]
    assert len(finished) >= 4
    assert not [path for path in Path().iterdir() if "partial" in path.name or "preview" in path.name]
    for name in finished:
        Image.open(name).load()


def test_every_flag_is_documented():
    parser = Parser()
    command.add_arguments(parser)
    table = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs" / "DECODE.md").read_text(), flags=re.MULTILINE)
    documented = {flag for cell in table for flag in re.findall(r"`(--\w+)`", cell)}
    assert documented == {action.option_strings[0] for action in parser._actions} - {"-h"}
