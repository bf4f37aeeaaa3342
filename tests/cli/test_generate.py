"""generate.py as its users call it, mostly within this process: starting torch takes longer than drawing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle3.cli import Parser, main
from dalle3.cli import generate as command
from tests import tiny
from tests.test_decode import write_stage_two

ROOT = Path(__file__).parent.parent.parent
# The two command lines that must work as written.
DALL_3 = "--top_p 0.85 --clip_sort --output_npy"
DALLE_PYTORCH = (
    "--top_p 0.85 --temperature 1.0 --clip_sort --output_npy --dalle_path ./dalle-latest.pt --bpe_path bpe.model "
    "--taming --vqgan_model_path vqgan_gumbel_f8/last.ckpt --vqgan_config_path vqgan_gumbel_f8/model.yaml "
    "--text 'a girl with thick glasses. a girl wearing glasses'"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A machine with a default model."""
    home = tmp_path_factory.mktemp("home")
    tiny.write_model(home / "default")
    return home


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(home, tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def generate(line: str) -> int:
    return main(["generate", *shlex.split(line)])


def refused(line: str, capsys) -> str:
    """The one line with which `line` is refused, before anything is drawn."""
    try:
        code = generate(line)
    except SystemExit as error:  # argparse's own way
        code = error.code
    written = capsys.readouterr()
    assert code == 2
    assert not Path("outputs").exists()
    assert written.out == ""
    (message,) = written.err.splitlines()
    return message


def files(folder: str = "outputs") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def codes(path: str) -> list[int]:
    return np.load(path, allow_pickle=False).tolist()


def parsed(line: str):
    parser = Parser()
    command.add_arguments(parser)
    return parser.parse_args(shlex.split(line))


def test_dall_3s_line_draws_an_example_with_the_default_model_and_says_so(capsys):
    assert generate(DALL_3 + " --num_images 3") == 0
    folder = command.EXAMPLE.replace(" ", "_")
    scores = [float(name[2:-4]) for name in files(f"outputs/{folder}") if name.endswith(".png")]
    assert files(f"outputs/{folder}") == sorted(
        [f"{rank}-{score:.4f}.png" for rank, score in enumerate(scores)] + ["0.npy", "1.npy", "2.npy", "caption.txt"]
    )
    assert scores == sorted(scores, reverse=True)
    assert f"drawing an example: --text '{command.EXAMPLE}'" in capsys.readouterr().err


@pytest.mark.parametrize("line", [DALL_3, DALLE_PYTORCH])
def test_the_lines_of_the_older_systems_parse_as_written(line):
    args = parsed(line)
    assert args.top_p == 0.85
    assert args.clip_sort
    assert args.output_npy


def test_every_flag_of_the_older_systems_is_taken():
    parsed(
        "--dalle_path d --text t --vqgan_model_path m --vqgan_config_path c --num_images 12 --batch_size 4 --top_k 0.9 "
        "--top_p 0.9 --temperature 1.0 --outputs_dir ./outputs --bpe_path b --clip_sort --hug --chinese --taming "
        "--output_npy --gentxt"
    )


def test_the_readme_lists_every_flag():
    parser = Parser()
    command.add_arguments(parser)
    table = re.findall(r"^\| (`--.*?) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    documented = {flag for cell in table for flag in re.findall(r"`(--\w+)`", cell)}
    flags = {action.option_strings[0] for action in parser._actions} - {"-h"}
    assert flags == documented


def test_each_prompt_has_its_folder(capsys):
    assert generate("--text 'a red circle | a blue star' --num_images 2 --seed 0 --output_npy") == 0
    assert files() == [
        *(f"a_blue_star/{name}" for name in ("0.npy", "0.png", "1.npy", "1.png", "caption.txt")),
        *(f"a_red_circle/{name}" for name in ("0.npy", "0.png", "1.npy", "1.png", "caption.txt")),
        "manifest.jsonl",
    ]
    assert capsys.readouterr().out.splitlines() == [
        "2 images in outputs/a_red_circle",
        "2 images in outputs/a_blue_star",
    ]


def test_the_printed_seed_and_an_index_draw_one_picture_again(capsys):
    generate("--text 'a red circle' --num_images 4 --output_npy --outputs_dir first")
    seed = re.search(r"--seed (\d+)", capsys.readouterr().err)[1]
    generate(f"--text 'a red circle' --seed {seed} --index 2 --output_npy --outputs_dir second")
    assert files("second/a_red_circle") == ["2.npy", "2.png", "caption.txt"]
    assert codes("second/a_red_circle/2.npy") == codes("first/a_red_circle/2.npy")


def test_the_bar_tells_images_per_second(capsys):
    generate("--text 'a red circle' --num_images 2 --seed 0")
    assert re.search(r"100%.*2\.0/2 images .*\d images/s", capsys.readouterr().err)


def test_codes_are_int64_and_flat():
    generate("--text 'a red circle' --num_images 1 --seed 0 --output_npy")
    found = np.load("outputs/a_red_circle/0.npy", allow_pickle=False)
    assert found.dtype == np.int64
    assert found.shape == (tiny.GRID**2,)


def test_the_recipe_is_in_the_png_and_in_the_manifest():
    generate("--text 'a red circle' --num_images 2 --seed 9 --top_k 4 --temperature 0.5")
    line = json.loads(Path("outputs/manifest.jsonl").read_text().splitlines()[1])
    inside = json.loads(Image.open("outputs/a_red_circle/1.png").text["dalle3"])
    assert line == {"file": "a_red_circle/1.png", **inside}
    assert (inside["prompt"], inside["seed"], inside["index"]) == ("a red circle", 9, 1)
    assert inside["settings"] == {
        "top_p": None,
        "top_k": 4.0,
        "temperature": 0.5,
        "cond_scale": 1.0,
        "truncate_captions": False,
    }


def test_no_metadata_leaves_no_recipe():
    generate("--text 'a red circle' --num_images 1 --no-metadata")
    assert files() == ["a_red_circle/0.png", "a_red_circle/caption.txt"]
    assert not Image.open("outputs/a_red_circle/0.png").text


def test_a_second_run_overwrites_nothing(capsys):
    for seed in (0, 1):
        generate(f"--text 'a red circle' --num_images 2 --seed {seed}")
    assert files("outputs/a_red_circle") == ["0.png", "1.png", "2.png", "3.png", "caption.txt"]
    assert "numbering on from 2" in capsys.readouterr().err


def test_keep_writes_only_the_best():
    generate("--text 'a red circle' --num_images 6 --keep 2 --seed 0")
    pngs = [name for name in files("outputs/a_red_circle") if name.endswith(".png")]
    assert [name[:2] for name in pngs] == ["0-", "1-"]


def test_a_prompts_file_overrides_flags_line_by_line():
    lines = [{"text": "a red circle", "seed": 7, "num_images": 2}, {"text": "a blue star"}]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert generate("--prompts_file prompts.jsonl --num_images 1 --seed 3") == 0
    manifest = [json.loads(line) for line in Path("outputs/manifest.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["seed"]) for line in manifest] == [
        *[("a red circle", 7)] * 2,
        ("a blue star", 3),
    ]


def test_a_prompts_file_may_be_plain_lines_with_remarks():
    Path("prompts.txt").write_text("# circles\na red circle\n\n# stars\na blue star\n")
    assert generate("--prompts_file prompts.txt --num_images 1 --seed 3") == 0
    manifest = [json.loads(line) for line in Path("outputs/manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in manifest] == ["a red circle", "a blue star"]


def test_a_prompts_file_may_come_from_windows():
    Path("prompts.txt").write_bytes("\ufeff# circles\r\na red circle\r\n\r\na blue star".encode())
    requests = command.read_requests(parsed("--num_images 1"), Path("prompts.txt"))
    assert [request.text for request in requests] == ["a red circle", "a blue star"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": 3}', "prompts.jsonl, line 2: Request.text is 3"),
        ('{"text": "a", "colour": 1}', "prompts.jsonl, line 1: Request has no field colour"),
        ('{"text": "a", "top_p": 2}', "prompts.jsonl, line 1: top_p is 2"),
        ('{"seed": 1}', 'line 1: {"seed": 1} is not an object with a "text"'),
        ('{"text": "a"', "prompts.jsonl, line 1: no JSON object: "),
        ("", "prompts.jsonl holds no prompts"),
        ("\x00\xff", "prompts.jsonl"),
    ],
)
def test_a_bad_prompts_file_is_named_with_its_line(content, message, capsys):
    Path("prompts.jsonl").write_text(content, encoding="latin-1")
    assert message in refused("--prompts_file prompts.jsonl", capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--text ''", "the prompt is empty"),
        ("--text 'a red circle | '", "the prompt is empty"),
        ("--text a --top_p 0", "top_p is 0.0"),
        ("--text a --top_p 1.01", "top_p is 1.01"),
        ("--text a --top_p nan", "top_p is nan"),
        ("--text a --top_p much", "argument --top_p: invalid float value: 'much'"),
        ("--text a --top_k -3", "top_k is -3"),
        ("--text a --top_k inf", "top_k is inf"),
        ("--text a --temperature nan", "temperature is nan"),
        ("--text a --num_images 0", "num_images is 0"),
        ("--text a --num_images 1.5", "argument --num_images: invalid int value: '1.5'"),
        ("--text a --batch_size 0", "batch_size is 0"),
        ("--text a --keep 0", "keep is 0"),
        ("--text a --index -1", "index is -1"),
        ("--text a --dtype float8", "argument --dtype: invalid choice: 'float8'"),
        ("--text a --dtype float16 --device cpu", "--dtype float16 needs a GPU"),
        ("--text a --device tpu", "--device tpu cannot be used here"),
        ("--text a --device meta", "--device meta cannot be used here"),
        ("--text a --colour red", "unrecognized arguments: --colour red"),
        ("--text a --dalle_path absent.pt", "absent.pt"),
        ("--text a --dalle_path {ROOT}/README.md", "README.md"),
        ("--text a --bpe_path absent.model", "absent.model"),
        ("--text a --bpe_path {ROOT}/README.md", "README.md"),
        ("--text a --hug", "--hug needs the tokenizers JSON"),
        ("--text a --hug --chinese", "--hug and --chinese"),
        ("--text a --vae_path absent", "absent"),
        ("--text a --vae_path x --vqgan_model_path y", "both name the image tokenizer"),
        ("--text a --vqgan_config_path x", "name that with --vqgan_model_path"),
        ("--text a --image absent.png", "--image absent.png: No such file or directory"),
        ("--text a --image {ROOT}/README.md", "not a picture"),
        ("--text a --num_init_img_tokens 4", "name the picture with image"),
        ("--text a --clip_sort --clip absent", "absent"),
        ("--text a --prompts_file b", "--text and --prompts_file both name prompts"),
        ("--prompts_file absent.jsonl", "--prompts_file absent.jsonl cannot be read: No such file"),
        ("--text 'a red circle and a blue square and a star'", "is 10 tokens long and the model reads 8"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(line, message, capsys):
    assert message in refused(line.replace("{ROOT}", str(ROOT)), capsys)


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_drawn(capsys):
    Path("file").touch()
    assert (
        refused("--text a --outputs_dir file/in_it", capsys)
        == "dalle3 generate: file/in_it was not written: Not a directory"
    )


@pytest.mark.parametrize("flag", ["--outputs_dir", "--dalle_path", "--prompts_file"])
def test_a_name_longer_than_any_file_system_takes_is_one_line(flag, capsys):
    assert "File name too long" in refused(f"{flag} {'x' * 300}", capsys)


def test_without_a_default_model_the_line_names_the_first_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr("dalle3.shipped.ASSETS", tmp_path / "assets")
    assert "no default model is in this build" in refused("--text a --top_p 0.9", capsys)


def test_mismatched_parts_are_refused_with_their_numbers(capsys, tmp_path):
    tiny.save_checkpoint(tiny.codec(num_tokens=32), tmp_path / "other")
    assert "do not belong together" in refused("--text a --vae_path other", capsys)


def test_a_truncated_file_is_named(capsys, home, tmp_path):
    shutil.copytree(home / "default", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cut/model.safetensors cannot be read as safetensors" in refused("--text a --dalle_path cut", capsys)


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_with_a_foreign_class_is_refused_by_name_and_not_run(capsys):
    torch.save({"hparams": {}, "weights": {}, "extra": Evil()}, "evil.pt")
    assert "posix.system" in refused("--text a --dalle_path evil.pt", capsys)
    assert not Path("pwned").exists()


def test_a_yaml_without_ddconfig_is_named(capsys):
    names = ("decoder.conv_in.weight", "quantize.embedding.weight", "quant_conv.weight")
    torch.save({"state_dict": {name: torch.zeros(4, 4, 1, 1) for name in names}}, "last.ckpt")
    Path("model.yaml").write_text("model: {target: taming.models.vqgan.VQModel, params: {embed_dim: 4, n_embed: 8}}")
    message = refused("--text a --taming --vqgan_model_path last.ckpt --vqgan_config_path model.yaml", capsys)
    assert "ddconfig" in message


def test_an_outputs_folder_that_is_a_file_is_one_line(capsys):
    Path("taken").write_text("")
    assert "taken" in refused("--text 'a red circle' --num_images 1 --outputs_dir taken", capsys).splitlines()[-1]


@pytest.fixture
def both(tmp_path, monkeypatch):
    """A machine whose default model has the second stage too."""
    write_stage_two(tmp_path / "both" / "default")
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path / "both"))


def recipe(path: str) -> dict:
    with Image.open(path) as picture:
        return json.loads(picture.text["dalle3"])


def test_diffusion_puts_the_decoded_picture_beside_the_first(both):
    assert generate("--text 'a red circle' --num_images 3 --batch_size 2 --seed 4 --diffusion --output_npy") == 0
    folder = Path("outputs/a_red_circle")
    assert {f"{i}{end}" for i in range(3) for end in (".png", "-decoded.png", ".npy")} < {
        p.name for p in folder.iterdir()
    }
    found = recipe("outputs/a_red_circle/1-decoded.png")
    assert (found["seed"], found["index"], found["prompt"]) == (4, 1, "a red circle")
    assert found["codes"] == recipe("outputs/a_red_circle/1.png")
    assert {"decoder", "codec"} <= set(found["weights"])
    line = json.loads(Path("outputs/manifest.jsonl").read_text().splitlines()[1])
    assert line["decoded"] == "a_red_circle/1-decoded.png"


def test_the_decoded_picture_is_the_one_decode_makes_of_the_codes(both):
    generate("--text 'a red circle' --num_images 2 --seed 4 --diffusion --output_npy --steps 3")
    main(["decode", "--input", "outputs/a_red_circle/0.npy", "--seed", "4", "--steps", "3", "--outputs_dir", "again"])
    first, again = (
        Image.open(name).convert("RGB").tobytes() for name in ("outputs/a_red_circle/0-decoded.png", "again/0.png")
    )
    assert first == again


def test_ranked_pictures_are_decoded_once_they_are_kept(both):
    assert generate("--text 'a red circle' --num_images 6 --keep 2 --seed 0 --diffusion --clip_guidance --cutn 2") == 0
    names = [name for name in files("outputs/a_red_circle") if name.endswith(".png")]
    assert [bool(re.fullmatch(r"[01]-[-\d.]+\d(-decoded)?\.png", name)) for name in names] == [True] * 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--text a --diffusion", "has no diffusion decoder in decoder/; pass one as --decoder"),
        ("--text a --decoder x", "--decoder and --upsampler are for --diffusion"),
        ("--text a --steps 5", "is of use with --diffusion only"),
        (
            "--text a --diffusion --decoder {HOME}/default/codec",
            "is a discrete_vae, not a diffusion decoder, which --decoder",
        ),
    ],
)
def test_a_mistake_about_the_second_stage_is_one_line(line, message, capsys, home):
    assert message in refused(line.replace("{HOME}", str(home)), capsys)


def test_how_to_decode_is_checked_before_anything_is_drawn(both, capsys):
    assert "upsample is 35" in refused("--text 'a red circle' --diffusion --upsample 35", capsys)


def start(*arguments: str, **options) -> subprocess.Popen:
    line = [sys.executable, str(ROOT / "generate.py"), "--text", "a red circle", "--device", "cpu", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("ranking", [[], ["--clip_sort"]], ids=["unranked", "ranked"])
def test_ctrl_c_keeps_what_is_finished(ranking):
    process = start("--num_images", "100000", "--batch_size", "1", *ranking)
    for line in process.stderr:  # the bar ends its lines with \r, which text mode reads as a line's end
        if (match := re.search(r"([\d.]+)/100000 images", line)) and float(match[1]) >= 3:
            break
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted; what was finished is kept\n")
    assert "Traceback" not in error
    pngs = [name for name in files("outputs/a_red_circle") if name.endswith(".png")]
    assert len(pngs) >= 3
    assert not [name for name in files() if "partial" in name]
    for name in pngs:
        Image.open(f"outputs/a_red_circle/{name}").load()
    assert len(Path("outputs/manifest.jsonl").read_text().splitlines()) == len(pngs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written():
    import resource

    process = start("--num_images", "1", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.splitlines()[-1] == "dalle3 generate: outputs/a_red_circle/0.png was not written: File too large"
    assert "Traceback" not in error
    assert files() == ["a_red_circle/caption.txt"]
