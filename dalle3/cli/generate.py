"""`dalle3 generate`, also `python generate.py`: prompts in, pictures, codes and recipes out.

Takes every flag of the generate.py of DALL-3 and of DALLE-pytorch, under the same names and with the same meaning.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dalle3.assemble import Parts, assemble
from dalle3.assemble_decoder import SecondStage, add_second_stage
from dalle3.cli.interrupt import Interrupt, stop_on_interrupt
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, from_dict, option
from dalle3.decode import PictureDecoder
from dalle3.decode_request import DecodeRequest, DecodeSettings
from dalle3.errors import ConfigError, Dalle3Error, DataError
from dalle3.files import read_lines, writable_folder
from dalle3.log import note, note_own
from dalle3.output import Gallery
from dalle3.pipeline import Drawing, Progress, Request, Stopped
from dalle3.refine import check, refine

EXAMPLE = "a large red circle"  # of a model that brings none
DECODED_AT_ONCE = 4  # pictures of the second stage on a GPU, where no --batch_size says more
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the pictures go and what is written beside them."""

    outputs_dir: Path = option(Path("outputs"), help="folder of the outputs, one folder in it for each prompt")
    output_npy: bool = option(False, help="write each picture's codes as <number>.npy, int64, flat")
    metadata: bool = option(True, help="write the recipe of each picture into its PNG and into manifest.jsonl")
    prompts_file: Path | None = option(
        None,
        help='draw what each line of this file says: a prompt, or flags like {"text": "a red circle", "seed": 7}; '
        "lines that begin with # are passed over",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the flags of a request, of the parts it is drawn with and of its outputs."""
    add_flags(parser, Request, title="what to draw (several prompts are split by |)")
    add_flags(parser, Parts, title="with which model")
    add_flags(parser, SecondStage, title="the second stage (python decode.py does it alone)")
    add_flags(parser, DecodeSettings, title="how the second stage decodes")
    add_flags(parser, Outputs, title="outputs (existing files are kept: new pictures are numbered on)")


def run(args: argparse.Namespace) -> int:
    """Draws what the flags say and returns 0.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is written.
        Dalle3Error: a mistake of the user's.
    """
    outputs = from_args(Outputs, args)
    requests = read_requests(args, outputs.prompts_file)
    gallery = Gallery(outputs.outputs_dir, codes=outputs.output_npy, metadata=outputs.metadata)
    parts, settings = from_args(Parts, args), from_args(DecodeSettings, args)
    model = assemble(parts)
    if unprompted := not hasattr(args, "text") and outputs.prompts_file is None:
        example = model.recommended.example or EXAMPLE
        requests = [dataclasses.replace(request, text=example) for request in requests]
    drawings = [Drawing(model, request) for request in requests]  # all are checked before the first is drawn
    decoder = _second_stage(args, parts, drawings)
    if unprompted:
        note(f"no --text was given; drawing an example: --text {requests[0].text!r}")
    writable_folder(outputs.outputs_dir)  # last of all checks, as it leaves a trace
    note_own("model", {name: value for drawing in drawings for name, value in drawing.own.items()})
    if decoder is not None:
        note_own("decoder", decoder.own(settings))
    with stop_on_interrupt() as interrupt:
        for drawing in drawings:
            _draw(drawing, gallery, interrupt, decoder, settings)
            if interrupt.pressed:
                raise KeyboardInterrupt
    return 0


def read_requests(args: argparse.Namespace, prompts_file: Path | None) -> list[Request]:
    """The requests that the flags and the prompts file name, in their order.

    Raises:
        Dalle3Error: a value that cannot be, a file that cannot be read, or two places that name the prompts.
    """
    flags = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(Request) if hasattr(args, field.name)
    }
    if flags.get("image") is not None:
        flags["image"] = str(flags["image"])
    if prompts_file is not None:
        if "text" in flags:
            raise ConfigError("--text and --prompts_file both name prompts; leave one out")
        return [from_dict(Request, {**flags, **line}) for line in _read_lines(prompts_file, flags)]
    texts = flags.pop("text", EXAMPLE).split("|")
    return [from_dict(Request, {**flags, "text": text.strip()}) for text in texts]


def _read_lines(path: Path, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """What the lines of a file ask for, each tried as a request, so that a bad one stops the run before it starts."""
    objects = []
    for number, line in enumerate(read_lines(path, flag="--prompts_file"), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                objects.append(_parse_line(line))
                from_dict(Request, {**flags, **objects[-1]})
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: no JSON object: {error.msg}, column {error.colno}") from None
            except Dalle3Error as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    if not objects:
        raise DataError(
            f'{path} holds no prompts; write one on each line, or an object like {{"text": "a red circle"}}'
        )
    return objects


def _parse_line(line: str) -> dict[str, Any]:
    if not line.lstrip().startswith("{"):
        return {"text": line.strip()}
    found = json.loads(line)
    if "text" not in found:
        raise DataError(f'{line[:60]} is not an object with a "text", like {{"text": "a red circle"}}')
    return found


def _second_stage(args: argparse.Namespace, parts: Parts, drawings: list[Drawing]) -> PictureDecoder | None:
    """The second stage, where it is asked for, held against every request."""
    stage, settings = from_args(SecondStage, args), from_args(DecodeSettings, args)
    if not stage.diffusion:
        if settings != DecodeSettings():
            raise ConfigError("how the second stage decodes is of use with --diffusion only; add that")
        return None
    model = drawings[0].model
    decoder = add_second_stage(model, parts, stage, enlarges=settings.upsample is not None)
    for drawing in drawings:
        check(decoder, decode_request(drawing, settings), grid=model.dalle.config.image_grid)
    return decoder


def decode_request(drawing: Drawing, settings: DecodeSettings) -> DecodeRequest:
    """How the codes of a drawing are decoded: its prompt and its seed are those of the second stage too."""
    asked = {field.name: getattr(settings, field.name) for field in dataclasses.fields(DecodeSettings)}
    request = drawing.request
    at_once = request.batch_size or DECODED_AT_ONCE
    return DecodeRequest(**asked, text=drawing.prompt, seed=drawing.seed, batch_size=at_once, preview_every=0)


def _draw(
    drawing: Drawing,
    gallery: Gallery,
    interrupt: Interrupt,
    decoder: PictureDecoder | None,
    settings: DecodeSettings,
) -> None:
    total, paths = len(drawing.request.indices), []
    note(f"{drawing.prompt!r}: {total} images, --seed {drawing.seed}")
    live = sys.stderr.isatty()  # a log gets a line for each batch, and at most one a second
    with tqdm(total=total, bar_format=BAR, dynamic_ncols=True, mininterval=0.1 if live else 1) as bar:

        def tick(done: float) -> None:
            if interrupt.pressed:
                raise Stopped
            if live:
                bar.update(done - bar.n)

        def tick_decoded(done: float) -> None:
            if interrupt.pressed:
                raise Stopped
            bar.set_description_str(f"{done:.1f} decoded ", refresh=live)

        events = drawing.events(tick=tick)
        if decoder is not None:
            events = refine(events, decoder, decode_request(drawing, settings), tick=tick_decoded)
        for event in events:
            if isinstance(event, Progress):
                bar.set_postfix_str(f"{event.images_per_second:.2f} images/s", refresh=False)
                bar.update(event.done - bar.n)
            else:
                paths.append(gallery.add(event.picture, prompt=event.prompt, place=event.place))
    if paths:
        print(f"{len(paths)} images in {paths[-1].parent}", flush=True)
