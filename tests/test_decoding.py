"""Decoding through caches gives what a full pass gives, for every option, and draws what the original draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dalle3 import compiled
from dalle3.decoding import Decoder, _Pictures
from dalle3.errors import CodesError
from dalle3.models.clip_text import ClipTextConfig
from dalle3.models.dalle import Dalle, DalleConfig
from dalle3.nn import native
from dalle3.nn.native import NativeEngine
from dalle3.nn.packed import PackedEngine
from dalle3.sampling import Noise, Sampling, draw, guide
from tests.golden import golden, relative_error
from tests.parity.test_dalle import FILES, load

READER = ClipTextConfig(embed_dim=8, context_length=7, vocab_size=50, text_width=8, text_layers=1, text_heads=2)
OPTIONS = {
    "full": {},
    "axial_row": {"attn_types": ("axial_row",)},
    "axial_col": {"attn_types": ("axial_col",)},
    "conv_like": {"attn_types": ("conv_like",)},
    "conv_like_centred": {"attn_types": ("conv_like_centred",)},
    "mixed": {"attn_types": ("full", "axial_row", "axial_col", "conv_like")},
    "learned positions": {"rotary_emb": False},
    "no shift": {"shift_tokens": False},
    "sandwich norm": {"sandwich_norm": True},
    "stable softmax": {"stable_softmax": True},
    "reversible": {"reversible": True, "attn_types": ("axial_row", "full")},
    "shared layers": {"shared_attn_ids": (0, 1, 0, 1), "shared_ff_ids": (0, 0, 1, 1)},
    "shared embeddings": {"share_input_output_emb": True},
    "odd grid": {"image_grid": 3},
    "caption maps": {"caption_maps": 3},
    "caption maps, reversible, stable": {"caption_maps": 2, "reversible": True, "stable_softmax": True},
    "maps of CLIP's reading": {"clip_maps": 3, "clip_text": READER},
    "maps of both kinds": {"clip_maps": 3, "clip_text": READER, "caption_maps": 2},
}


def make(**changes) -> Dalle:
    torch.manual_seed(0)
    sizes = {"num_text_tokens": 50, "text_seq_len": 7, "num_image_tokens": 40, "image_grid": 6}
    model = Dalle(DalleConfig(**{**sizes, "dim": 32, "depth": 4, "heads": 2, "dim_head": 16, **changes}))
    for name, parameter in model.named_parameters():  # nothing may hide behind zeros, ones and small scales
        torch.nn.init.normal_(parameter, mean=float(name.endswith(("norm.weight", "scale"))), std=0.2)
    return model.eval()


@pytest.fixture
def caption() -> Tensor:
    return torch.tensor([5, 9, 0, 31, 2, 0, 0])


@pytest.fixture(params=["native", "packed"])
def engine(request) -> NativeEngine | PackedEngine:
    if request.param == "packed":
        return PackedEngine(torch.float32)
    if native.library() is None:
        pytest.skip("no C compiler here")
    return NativeEngine()


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("given", [0, 8])
@pytest.mark.parametrize("option", OPTIONS)
@torch.inference_mode()
def test_one_code_at_a_time_equals_one_pass(option, given, pictures, engine, caption):
    model = make(**OPTIONS[option])
    codes = torch.randint(0, 40, (pictures, model.config.image_seq_len), generator=torch.Generator().manual_seed(1))
    codes[:, :given] = codes[0, :given].clone()
    decoder = Decoder(model, engine)
    state = _Pictures(decoder, decoder.read(caption, cond_scale=2.0, prime=codes[0, :given]), pictures)
    texts = torch.stack([caption, torch.zeros_like(caption)]).repeat_interleave(pictures, dim=0)
    expected = model(texts, codes.repeat(2, 1))[:, :, model.config.num_text_ids :]
    for position in range(given, model.config.image_seq_len - 1):
        logits = decoder.to_image_logits(state.step(codes[:, position], position))[: 2 * pictures]
        assert relative_error(logits, expected[:, model.config.text_seq_len + 1 + position]) < 1e-5, position


@pytest.mark.parametrize("name", FILES)
def test_greedy_codes_are_the_originals(name, engine):
    reference = golden(name)
    decoder, outputs = Decoder(load(reference), engine), reference["outputs"]
    expected = outputs.get("greedy_tokens_text0", outputs.get("greedy_tokens"))
    if expected is None:
        pytest.skip("no greedy codes in this reference")
    for text, codes in zip(reference["inputs"]["text"], expected, strict=False):
        drawn = decoder.draw(decoder.read(text), Sampling(temperature=0), seed=0, indices=range(2))
        assert torch.equal(drawn.flatten(1), codes.expand(2, -1))


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.7), Sampling(top_k=5, temperature=0.5, cond_scale=3.0)])
@torch.inference_mode()
def test_drawing_is_the_plain_loop_over_full_passes(sampling, caption):
    model, noise = make(), Noise([4], "image", [2], 40)
    decoder = Decoder(model)
    drawn = decoder.draw(decoder.read(caption, cond_scale=sampling.cond_scale), sampling, seed=4, indices=[2])
    codes = torch.empty(1, 0, dtype=torch.long)
    for _ in range(model.config.image_seq_len):
        both = torch.cat([model(text[None], codes)[:, -1] for text in (caption, torch.zeros_like(caption))])
        logits = guide(both[:, model.config.num_text_ids :], sampling.cond_scale)
        codes = torch.cat([codes, draw(logits, sampling, noise, num_tokens=model.config.num_tokens)[:, None]], dim=1)
    assert torch.equal(drawn.flatten(1), codes)


@pytest.mark.parametrize("option", ["full", "mixed", "reversible"])
def test_a_picture_is_the_same_in_any_company(option, caption):
    decoder = Decoder(make(**OPTIONS[option]))
    prefix, sampling = decoder.read(caption, cond_scale=1.5), Sampling(top_p=0.9, cond_scale=1.5)
    together = decoder.draw(prefix, sampling, seed=3, indices=range(7))
    for indices in ([0], [6], [4, 2], [1, 2, 3, 4, 5]):
        assert torch.equal(decoder.draw(prefix, sampling, seed=3, indices=indices), together[indices])


@pytest.mark.parametrize("cond_scale", [1.0, 2.0])
@pytest.mark.parametrize("option", ["full", "mixed", "reversible"])
def test_several_captions_are_drawn_together_as_each_alone(option, cond_scale, engine, caption):
    decoder, sampling = Decoder(make(**OPTIONS[option]), engine), Sampling(top_p=0.9, cond_scale=cond_scale)
    captions, prime = torch.stack([caption, caption.flip(0), torch.zeros_like(caption)]), torch.arange(3)
    prefix = decoder.read(captions, cond_scale=cond_scale, prime=prime)
    together = decoder.draw(prefix, sampling, seed=[3, 5, 3], indices=[1, 4]).unflatten(0, (3, 2))
    for text, seed, drawn in zip(captions, (3, 5, 3), together, strict=True):
        alone = decoder.draw(
            decoder.read(text, cond_scale=cond_scale, prime=prime), sampling, seed=seed, indices=[1, 4]
        )
        assert torch.equal(drawn, alone)


def test_fewer_pictures_of_a_large_model_are_drawn_at_once():
    decoder, guided = Decoder(make()), Sampling(cond_scale=2.0)
    assert decoder.pictures_at_once(guided) == 16
    large = {"depth": 24, "heads": 16, "dim_head": 64, "image_grid": 32}  # 201 MB of keys and values for a picture
    decoder.config = dataclasses.replace(decoder.config, **large)
    assert decoder.pictures_at_once(Sampling()) == 2 * 1024**3 // (2 * 24 * 16 * 64 * 1024 * 4) == 10
    assert decoder.pictures_at_once(guided) == 5
    decoder.config = dataclasses.replace(decoder.config, depth=96)
    assert decoder.pictures_at_once(guided) == 4


def test_pictures_of_one_seed_differ_from_each_other_and_from_another_seed(caption):
    decoder = Decoder(make())
    prefix = decoder.read(caption)
    first = decoder.draw(prefix, Sampling(), seed=0, indices=range(3))
    assert len({tuple(codes.flatten().tolist()) for codes in first}) == 3
    assert not torch.equal(first, decoder.draw(prefix, Sampling(), seed=1, indices=range(3)))


def test_pictures_begin_with_the_codes_given(caption):
    decoder, prime = Decoder(make()), torch.arange(10)
    codes = decoder.draw(decoder.read(caption, prime=prime), Sampling(), seed=0, indices=range(3)).flatten(1)
    assert torch.equal(codes[:, :10], prime.expand(3, -1))
    assert codes.shape == (3, 36)


def test_too_many_given_codes_are_refused(caption):
    with pytest.raises(CodesError, match="36 codes to start with; a picture has 36"):
        Decoder(make()).read(caption, prime=torch.zeros(36, dtype=torch.long))


@pytest.mark.parametrize("option", ["full", "learned positions", "no shift", "reversible", "mixed"])
@torch.inference_mode()
def test_completing_a_caption_is_the_plain_loop_over_full_passes(option, engine):
    model, sampling = make(text_seq_len=12, **OPTIONS[option]), Sampling(top_k=8)
    noise = Noise([0], "text", [0], model.config.num_text_ids)
    ids = torch.tensor([5, 9] + [0] * 10)
    expected = ids.clone()
    for position in range(2, 12):
        logits = model(expected[None])[:, position, : model.config.num_text_ids]
        drawn = int(draw(logits, sampling, noise, num_tokens=model.config.num_tokens))
        if drawn >= model.config.num_text_tokens or drawn == 0:
            break
        expected[position] = drawn
    assert torch.equal(Decoder(model, engine).complete(ids, sampling, seed=0), expected)
    assert position > 4, "the loop must be exercised"


@pytest.mark.parametrize("pictures", [1, 2, 5, 8, 17])
@torch.inference_mode()
def test_both_engines_agree_for_any_number_of_pictures_and_threads(pictures, caption):
    if native.library() is None:
        pytest.skip("no C compiler here")
    model = make(heads=3, dim_head=16, attn_types=("full", "conv_like"))
    codes = torch.randint(0, 40, (pictures,), generator=torch.Generator().manual_seed(1))
    hidden, threads = [], torch.get_num_threads()
    for engine, count in ((PackedEngine(torch.float32), 1), (NativeEngine(), 1), (NativeEngine(), 2)):
        torch.set_num_threads(count)
        decoder = Decoder(model, engine)
        hidden.append(_Pictures(decoder, decoder.read(caption), pictures).step(codes, 0)[:pictures])
    torch.set_num_threads(threads)
    assert relative_error(hidden[1], hidden[0]) < 1e-5
    assert relative_error(hidden[2], hidden[0]) < 1e-5


def test_odd_widths_go_through_the_packed_engine(caption):
    assert isinstance(Decoder(make(dim=24, dim_head=12)).engine, PackedEngine)


def test_native_code_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("DALLE3_NATIVE", "0")
    for cached in (native.library, compiled.library):
        cached.cache_clear()
    assert native.library() is None
    for cached in (native.library, compiled.library):
        cached.cache_clear()


def test_progress_counts_the_codes(caption):
    decoder, seen = Decoder(make()), []
    decoder.draw(
        decoder.read(caption), Sampling(), seed=0, indices=[0], on_token=lambda done, of: seen.append((done, of))
    )
    assert seen == [(done, 36) for done in range(1, 37)]


def test_bfloat16_draws_from_nearly_the_same_logits(caption):
    model = make()
    exact = Decoder(model).read(caption).hidden
    rough = Decoder(model.to(torch.bfloat16)).read(caption).hidden
    assert rough.dtype == torch.bfloat16
    assert relative_error(rough.float(), exact) < 0.05
    codes = Decoder(model).draw(Decoder(model).read(caption), Sampling(), seed=0, indices=range(2))
    assert codes.shape == (2, 6, 6)


@pytest.mark.gpu
@pytest.mark.parametrize("option", OPTIONS)
def test_a_gpu_draws_the_pictures_of_the_cpu(option, caption):
    model, sampling = make(**OPTIONS[option]), Sampling(top_p=0.9, cond_scale=2.0)
    drawn = []
    for device in ("cpu", "cuda"):
        decoder = Decoder(model.to(device))
        drawn.append(decoder.draw(decoder.read(caption, cond_scale=2.0), sampling, seed=0, indices=range(3)))
    assert torch.equal(*drawn)
