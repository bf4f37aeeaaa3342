"""`dalle3 decode`, also `python decode.py`: codes or pictures in, full-quality pictures out.

Takes every flag of sample.py, super_res.py and ru.py of DALL-3's guided-diffusion, under the same names and with the
same meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from dalle3.assemble_decoder import DecoderParts, assemble_decoder
from dalle3.cli.interrupt import Interrupt, stop_on_interrupt
from dalle3.config import add_arguments as add_flags
from dalle3.config import from_args, option
from dalle3.decode import Decoding, Job, PictureDecoder, Preview, upscaled_side
from dalle3.decode_request import DecodeRequest
from dalle3.errors import CodesError, ImageError
from dalle3.files import writable_folder
from dalle3.inputs import encode_picture, find_inputs, is_codes, read_codes, read_picture, square
from dalle3.log import note, note_own, warn
from dalle3.output import BesideInputs
from dalle3.pipeline import Progress, Stopped

BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total} images [{elapsed}<{remaining}]"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where the pictures go."""

    outputs_dir: Path | None = option(None, help="folder of the pictures (default: beside each input)")
    metadata: bool = option(True, help="write the recipe of each picture into its PNG")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the inputs, and the flags of a request, of the parts and of the outputs."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="what to decode: .npy files of codes, pictures, addresses of pictures, or folders of either",
    )
    add_flags(parser, DecodeRequest, title="how to decode")
    add_flags(parser, DecoderParts, title="with which models")
    add_flags(parser, Outputs, title="outputs (x.npy becomes x.png; nothing is overwritten)")


def run(args: argparse.Namespace) -> int:
    """Decodes what the flags say; 0, or 1 where an input could not be read and was left out.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is written.
        Dalle3Error: a mistake of the user's.
    """
    request, outputs = from_args(DecodeRequest, args), from_args(Outputs, args)
    names = find_inputs(args.input)
    gallery = BesideInputs(outputs.outputs_dir, metadata=outputs.metadata)
    decoder = assemble_decoder(from_args(DecoderParts, args), enlarges=request.upsample is not None)
    if (request.text or request.image_prompts) and not request.clip_guidance:
        note("--text and --image_prompts are only written into the recipes; they steer with --clip_guidance")
    found, skipped = read_all(names, lambda name: read_job(name, decoder, request))
    jobs = [dataclasses.replace(job, index=index) for job in found for index in request.indices]
    decoding = Decoding(decoder, request, jobs)
    for folder in {gallery.folder(job.name) for job in jobs}:
        writable_folder(folder)  # last of all checks, as it leaves a trace
    with stop_on_interrupt() as interrupt:
        _decode(decoding, gallery, interrupt)
    if interrupt.pressed:
        raise KeyboardInterrupt
    return 1 if skipped else 0


def read_all(names: Sequence[str], read: Callable[[str], T]) -> tuple[list[T], int]:
    """What `read` makes of all that can be read, and how many could not: each is named.

    Raises:
        CodesError: there is one input, and it cannot be read; or of many, none.
        ImageError: as well.
    """
    found: list[T] = []
    errors: list[CodesError | ImageError] = []
    for name in names:
        try:
            found.append(read(name))
        except (CodesError, ImageError) as error:
            errors.append(error)
    if not found:
        raise (
            errors[0] if len(errors) == 1 else ImageError(f"none of {len(names)} inputs can be read: {errors[0]}; ...")
        )
    for error in errors:
        warn(f"left out: {error}")
    return found, len(errors)


def read_job(name: str, decoder: PictureDecoder, request: DecodeRequest) -> Job:
    """The codes in a file, those of a picture, or for an upsampler alone the picture itself.

    Raises:
        CodesError: the file holds no codes of this decoder.
        ImageError: the picture cannot be read.
        ConfigError: the size asked for is no multiple of what the network needs.
    """
    if decoder.unet is None:
        assert decoder.upsampler is not None
        if is_codes(name):
            raise CodesError(f"{name} holds codes, and --model_path an upsampler, which takes pictures; pass a decoder")
        small = upscaled_side(decoder.upsampler, request) // decoder.upsampler.settings.scale
        return Job(name=name, picture=square(read_picture(name), small))
    assert decoder.codec is not None
    if is_codes(name):
        codes = read_codes(name, num_tokens=decoder.codec.num_tokens)
        decoder.side(len(codes), name=name)
        return Job(name=name, codes=codes)
    grid = decoder.grid(request.output_size)
    return Job(name=name, codes=encode_picture(read_picture(name), decoder.codec, grid=grid, device=decoder.device))


def _decode(decoding: Decoding, gallery: BesideInputs, interrupt: Interrupt) -> None:
    request, jobs, of = decoding.request, decoding.jobs, len(decoding.request.indices)
    note_own("decoder", decoding.decoder.own(request))
    note(f"{len(jobs)} images, {decoding.steps} steps, --seed {request.seed}")
    live = sys.stderr.isatty()  # a log gets a line at most once a second
    bar = tqdm(total=len(jobs), bar_format=BAR, dynamic_ncols=True, mininterval=0.1 if live else 1)
    with bar, contextlib.closing(gallery):

        def tick(done: float) -> None:
            bar.update(done - bar.n)
            if interrupt.pressed:
                raise Stopped

        for event in decoding.events(tick=tick):
            if isinstance(event, Preview):
                job = jobs[event.place]
                gallery.show(event.image, job.name, job.index, of=of)
            elif not isinstance(event, Progress):
                print(gallery.add(event.picture, jobs[event.place].name, of=of), flush=True)
