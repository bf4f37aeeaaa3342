"""Both stages in one process: beside what the image tokenizer draws of the codes, what the decoder makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from dalle3.decode import Decoding, Job, PictureDecoder
from dalle3.decode_request import DecodeRequest
from dalle3.pipeline import Progress, Result, Tick


def check(decoder: PictureDecoder, request: DecodeRequest, *, grid: int) -> None:
    """Raises Dalle3Error or DiffusionError unless codes (grid, grid) can be decoded as `request` asks."""
    Decoding(decoder, request, [Job(name="codes", codes=torch.zeros(grid, grid, dtype=torch.long))])


def refine(
    events: Iterable[Progress | Result],
    decoder: PictureDecoder,
    request: DecodeRequest,
    *,
    tick: Tick = lambda done: None,
) -> Iterator[Progress | Result]:
    """The events of `pipeline.run`, their pictures with what the decoder makes of the same codes as `decoded`.

    Pictures that are drawn together are decoded together. Where the decoding is stopped, a picture comes without.

    Args:
        events: of stage one.
        decoder: of the codes of the same image tokenizer.
        request: how to decode; its seed and text should be those of stage one.
        tick: is called after every step with the pictures decoded so far; may raise `pipeline.Stopped`.
    """
    waiting: list[Result] = []
    done = 0
    for event in events:
        if isinstance(event, Result):
            waiting.append(event)
            continue
        yield from _decoded(waiting, decoder, request, lambda part, done=done: tick(done + part))
        done += len(waiting)
        waiting = []
        yield event
    yield from _decoded(waiting, decoder, request, lambda part: tick(done + part))


def _decoded(results: list[Result], decoder: PictureDecoder, request: DecodeRequest, tick: Tick) -> Iterator[Result]:
    if not results:
        return
    jobs = [
        Job(name="codes", index=result.picture.index, codes=torch.from_numpy(result.picture.codes))
        for result in results
    ]
    left = dict(enumerate(results))
    for event in Decoding(decoder, request, jobs).events(tick=tick):
        if isinstance(event, Result):
            yield _beside(left.pop(event.place), event)
    yield from left.values()


def _beside(drawn: Result, decoded: Result) -> Result:
    picture = decoded.picture
    recipe = {**picture.recipe, "codes": drawn.picture.recipe}
    picture = dataclasses.replace(drawn.picture, decoded=dataclasses.replace(picture, recipe=recipe))
    return dataclasses.replace(drawn, picture=picture)
