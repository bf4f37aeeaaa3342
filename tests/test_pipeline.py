from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import dalle3
from dalle3.errors import CheckpointError, ConfigError, Dalle3Error, ImageError, PromptError
from dalle3.pipeline import Model, Progress, Request, Result, Stopped, run
from dalle3.sampling import Recommended
from tests import tiny

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return dalle3.load(folder, device="cpu")


def pixels(picture) -> bytes:
    return picture.image.tobytes()


def results(model, **request) -> list[Result]:
    return [event for event in run(model, Request(text=PROMPT, seed=0, **request)) if isinstance(event, Result)]


def test_a_notebook_user_gets_pictures(model):
    pictures = model.generate(PROMPT, n=3, top_p=0.85, seed=0)
    assert [picture.index for picture in pictures] == [0, 1, 2]
    assert all(picture.image.size == (16, 16) for picture in pictures)
    assert all(picture.codes.shape == (4, 4) and picture.codes.dtype == np.int64 for picture in pictures)
    assert pictures[0]._repr_png_().startswith(b"\x89PNG")


def test_one_seed_draws_one_set_of_pictures(model):
    first, again, other = (model.generate(PROMPT, n=2, seed=seed) for seed in (0, 0, 1))
    assert [*map(pixels, first)] == [*map(pixels, again)]
    assert pixels(first[0]) != pixels(other[0])
    assert pixels(first[0]) != pixels(first[1])


def test_without_a_seed_each_run_differs_and_tells_its_seed(model):
    first, second = model.generate(PROMPT, n=1)[0], model.generate(PROMPT, n=1)[0]
    assert first.seed != second.seed
    assert pixels(model.generate(PROMPT, n=1, seed=first.seed)[0]) == pixels(first)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_changes_no_picture(model, batch_size):
    expected = model.generate(PROMPT, n=5, seed=3, batch_size=5)
    found = model.generate(PROMPT, n=5, seed=3, batch_size=batch_size)
    assert [*map(pixels, found)] == [*map(pixels, expected)]
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(expected, found, strict=True))


def test_a_picture_drawn_alone_is_the_one_of_the_run(model):
    run_of_four = model.generate(PROMPT, n=4, seed=5)
    (alone,) = model.generate(PROMPT, seed=5, index=2)
    assert alone.index == 2
    assert np.array_equal(alone.codes, run_of_four[2].codes)


def test_the_picture_is_the_decoded_codes_rounded_and_not_stretched(model):
    import torch

    (picture,) = model.generate(PROMPT, n=1, seed=0)
    with torch.inference_mode():
        decoded = model.codec.decode(torch.from_numpy(picture.codes)[None])[0]
    expected = np.round(255 * decoded.permute(1, 2, 0).numpy()).astype(np.uint8)
    assert np.abs(np.asarray(picture.image).astype(int) - expected).max() <= 1
    assert (np.asarray(picture.image) == expected).mean() > 0.99


def test_progress_counts_pictures_after_each_batch(model):
    events = list(run(model, Request(text=PROMPT, seed=0, num_images=5, batch_size=2)))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in progress] == [(2, 5), (4, 5), (5, 5)]
    assert all(event.images_per_second > 0 for event in progress)
    assert isinstance(events[0], Result), "a picture comes as soon as its batch is drawn"


def test_the_tick_grows_with_every_code(model):
    ticks: list[float] = []
    list(run(model, Request(text=PROMPT, seed=0, num_images=3, batch_size=2), tick=ticks.append))
    assert ticks == sorted(ticks)
    assert ticks[-1] == 3
    assert len(ticks) >= 2 * tiny.GRID**2


def test_clip_sort_yields_the_best_first(model):
    found = results(model, num_images=6, clip_sort=True)
    scores = [result.picture.score for result in found]
    assert [result.place for result in found] == list(range(6))
    assert scores == sorted(scores, reverse=True)
    assert found[0].picture.recipe["score"] == scores[0]
    assert sorted(result.picture.index for result in found) == list(range(6))


def test_keep_keeps_the_best_of_all(model):
    everything = results(model, num_images=6, clip_sort=True)
    kept = results(model, num_images=6, keep=2, batch_size=3)
    assert [result.picture.index for result in kept] == [result.picture.index for result in everything[:2]]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_of_the_candidates_of_each_picture_clip_takes_the_best(model, batch_size):
    everything = results(model, num_images=6, clip_sort=True)  # best first
    found = results(model, num_images=2, best_of=3, batch_size=batch_size)
    for number, result in enumerate(found):
        best = next(one.picture for one in everything if one.picture.index // 3 == number)
        recipe = result.picture.recipe
        assert (result.place, result.picture.index, recipe["index"], recipe["candidate"]) == (
            *[number] * 3,
            best.index,
        )
        assert (recipe["settings"]["best_of"], pixels(result.picture)) == (3, pixels(best))


def test_the_best_candidate_can_be_drawn_alone_with_its_company_and_without(model):
    chosen = model.generate(PROMPT, n=3, seed=0, best_of=2)[2]
    with_company = model.generate(PROMPT, seed=0, best_of=2, index=2)[0]
    alone = model.generate(PROMPT, seed=0, index=chosen.recipe["candidate"])[0]
    assert pixels(chosen) == pixels(with_company) == pixels(alone)


def test_best_candidates_are_sorted_too_where_both_are_asked_for(model):
    found = results(model, num_images=3, best_of=2, clip_sort=True)
    scores = [result.picture.score for result in found]
    assert scores == sorted(scores, reverse=True)
    everything = {one.picture.index: one.picture.score for one in results(model, num_images=6, clip_sort=True)}
    assert scores == sorted([max(everything[2 * n], everything[2 * n + 1]) for n in range(3)], reverse=True)


def test_a_model_recommends_candidates_but_where_clip_sorts_all_that_is_drawn():
    own = Recommended(best_of=4)
    asked = {"plain": {}, "sorted": {"clip_sort": True}, "kept": {"keep": 1}, "both": {"keep": 1, "best_of": 2}}
    found = {name: Request(text=PROMPT, **flags).candidates(own) for name, flags in asked.items()}
    assert found == {"plain": 4, "sorted": 1, "kept": 1, "both": 2}
    assert Request(text=PROMPT).candidates(Recommended()) == 1


def test_pictures_are_counted_whole_and_a_stop_keeps_those_whose_candidates_are_all_there(model):
    def tick(done: float) -> None:
        if done > 2.6:
            raise Stopped

    request = Request(text=PROMPT, seed=0, num_images=4, best_of=3, batch_size=2)
    events = list(run(model, request, tick=tick))
    assert [event.done for event in events if isinstance(event, Progress)] == [0, 1, 2]
    assert [event.place for event in events if isinstance(event, Result)] == [0, 1]


def test_the_recipe_draws_the_picture_again(model):
    picture = model.generate(PROMPT, n=3, seed=11, temperature=0.8, top_k=6)[2]
    recipe = picture.recipe
    settings = {key: recipe["settings"][key] for key in ("top_p", "top_k", "temperature", "cond_scale")}
    (again,) = model.generate(recipe["prompt"], seed=recipe["seed"], index=recipe["index"], **settings)
    assert pixels(again) == pixels(picture)


def test_the_recipe_names_weights_and_versions(model):
    recipe = model.generate(PROMPT, n=1, seed=0)[0].recipe
    assert {name: len(digest) for name, digest in recipe["weights"].items()} == {"dalle": 64, "codec": 64}
    assert recipe["versions"]["dalle3"] == dalle3.__version__


def test_top_p_is_a_tenth_short_of_everything_where_no_filter_is_given():
    nothing = Recommended()
    assert Request(text=PROMPT).settled(nothing).top_p == 0.9
    assert Request(text=PROMPT, top_k=0.5).settled(nothing).top_p is None
    assert Request(text=PROMPT, top_p=0.3).settled(nothing).top_p == 0.3


@pytest.fixture(scope="module")
def choosy(tmp_path_factory) -> Model:
    """The same model with settings of its own."""
    own = Recommended(cond_scale=3.0, top_k=5.0, temperature=0.7)
    found = dataclasses.replace(tiny.dalle(image_codec=tiny.codec()), recommended=own)
    folder = tmp_path_factory.mktemp("models") / "choosy"
    tiny.save_checkpoint(found, folder, tokenizer=tiny.tokenizer())
    return dalle3.load(folder, device="cpu")


def test_a_model_draws_as_it_recommends_and_says_so_in_the_recipe(model, choosy):
    found, expected = choosy.generate(PROMPT, n=1, seed=4)[0], choosy.recommended.said
    assert found.recipe["settings"].items() >= expected.items()
    asked = model.generate(PROMPT, n=1, seed=4, cond_scale=3.0, top_k=5.0, temperature=0.7)[0]
    assert (pixels(found), found.recipe) == (pixels(asked), asked.recipe)


def test_the_usual_settings_can_be_asked_of_a_model_that_recommends_others(model, choosy):
    found = choosy.generate(PROMPT, n=1, seed=4, cond_scale=1.0, top_p=0.9, temperature=1.0)[0]
    assert found.recipe == model.generate(PROMPT, n=1, seed=4)[0].recipe


def test_a_stop_keeps_the_pictures_drawn_before_it(model):
    def tick(done: float) -> None:
        if done > 3.5:
            raise Stopped

    for clip_sort in (False, True):
        request = Request(text=PROMPT, seed=0, num_images=6, batch_size=1, clip_sort=clip_sort)
        kept = [event.picture for event in run(model, request, tick=tick) if isinstance(event, Result)]
        assert sorted(picture.index for picture in kept) == [0, 1, 2]


def test_a_prime_is_the_beginning_of_every_picture(model, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "prime.png")
    pictures = model.generate(PROMPT, n=3, seed=0, image=tmp_path / "prime.png")
    starts = {tuple(picture.codes.flatten()[:7]) for picture in pictures}
    assert len(starts) == 1
    assert pictures[0].recipe["settings"]["num_init_img_tokens"] == 7, "43.75 % of 16"
    given = model.generate(PROMPT, n=1, seed=0, image=image, num_init_img_tokens=7)[0]
    assert np.array_equal(given.codes, pictures[0].codes)
    assert tuple(model.generate(PROMPT, n=1, seed=0)[0].codes.flatten()[:7]) not in starts


def test_gentxt_draws_the_completed_prompt(model):
    (result,) = results(model, num_images=1, gentxt=True)
    assert result.prompt.startswith(PROMPT)
    assert result.picture.recipe["completed_from"] == PROMPT
    assert result.picture.recipe["prompt"] == result.prompt


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"prompt": ""}, PromptError, "the prompt is empty"),
        ({"prompt": " \n"}, PromptError, "the prompt is empty"),
        ({"prompt": "a" + " red" * 9}, PromptError, "is 10 tokens long and the model reads 8"),
        ({"n": 0}, ConfigError, "num_images is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"keep": 0}, ConfigError, "keep is 0"),
        ({"index": -1}, ConfigError, "index is -1"),
        ({"top_p": 0.0}, ConfigError, "top_p is 0"),
        ({"top_p": 1.5}, ConfigError, "top_p is 1.5"),
        ({"temperature": -1.0}, ConfigError, "temperature is -1"),
        ({"num_init_img_tokens": 3}, ConfigError, "name the picture"),
        ({"image": "absent.png"}, ImageError, "No such file"),
        ({"image": __file__}, ImageError, "not a picture"),
        ({"image": Image.new("RGB", (9, 9)), "num_init_img_tokens": 16}, ConfigError, "a picture has 16"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_drawn(model, request_, error, message):
    with pytest.raises(error, match=message):
        model.generate(**{"prompt": PROMPT, **request_})


def test_a_long_prompt_is_cut_where_that_is_asked_for(model, capsys):
    long = "a red" + " circle" * 9
    assert model.generate(long, n=1, seed=0, truncate_captions=True)
    assert "the rest is left out" in capsys.readouterr().err


def test_an_image_tokenizer_of_another_size_is_refused(tmp_path, folder):
    tiny.save_checkpoint(tiny.codec(num_tokens=32), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"do not belong together.*vocab 16, not 32"):
        dalle3.load(folder, vae=tmp_path / "other")


def test_an_image_tokenizer_with_other_weights_is_refused(tmp_path, folder):
    tiny.save_checkpoint(tiny.codec(seed=1), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"do not belong together.*sha256 [0-9a-f]+, not [0-9a-f]+"):
        dalle3.load(folder, vae=tmp_path / "other")


def test_an_image_tokenizer_of_the_same_codes_draws_in_its_own_way(tmp_path, folder):
    finer = tiny.codec()
    for name in finer.state:
        if name.startswith(("decoder.", "codebook.")):
            finer.state[name] = finer.state[name] + 0.1
    tiny.save_checkpoint(finer, tmp_path / "finer")
    own, other = (dalle3.load(folder, vae=vae).generate(PROMPT, n=1, seed=0)[0] for vae in (None, tmp_path / "finer"))
    assert np.array_equal(own.codes, other.codes)
    assert not np.array_equal(np.asarray(own.image), np.asarray(other.image))


def test_what_lies_beside_a_dalle_by_mistake_vouches_for_nothing(tmp_path):
    tiny.write_model(tmp_path / "model")
    stranger = tiny.codec(seed=1)
    shutil.rmtree(tmp_path / "model" / "codec")
    tiny.save_checkpoint(stranger, tmp_path / "model" / "codec")
    tiny.save_checkpoint(stranger, tmp_path / "again")
    with pytest.raises(CheckpointError, match="do not belong together"):
        dalle3.load(tmp_path / "model", vae=tmp_path / "again")


def test_a_tokenizer_of_another_size_is_refused(tmp_path, folder):
    tiny.tokenizer().save(tmp_path)
    words = tmp_path / "tokenizer.json"
    words.write_text(
        words.read_text().replace('"star":9', '"star":9,"more":11').replace('"star": 9', '"star": 9, "more": 11')
    )
    with pytest.raises(CheckpointError, match="reads text of 11 tokens, but the huggingface tokenizer has 12"):
        dalle3.load(folder, bpe_path=words, hug=True)


def test_a_model_without_its_image_tokenizer_says_which_flag_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny.save_checkpoint(tiny.dalle(image_codec=None), tmp_path / "bare", tokenizer=tiny.tokenizer())
    with pytest.raises(CheckpointError, match=r"does not hold its image tokenizer; .* --vae_path"):
        dalle3.load(tmp_path / "bare")


def test_parts_given_apart_make_the_same_model(tmp_path, model):
    tiny.save_checkpoint(tiny.dalle(image_codec=None), tmp_path / "bare")
    tiny.save_checkpoint(tiny.codec(), tmp_path / "vae")
    tiny.tokenizer().save(tmp_path)
    apart = dalle3.load(tmp_path / "bare", vae=tmp_path / "vae", bpe_path=tmp_path / "tokenizer.json", hug=True)
    assert pixels(apart.generate(PROMPT, n=1, seed=0)[0]) == pixels(model.generate(PROMPT, n=1, seed=0)[0])


def test_a_codec_is_not_taken_for_a_dalle(tmp_path):
    tiny.save_checkpoint(tiny.codec(), tmp_path / "vae")
    with pytest.raises(CheckpointError, match="is a discrete_vae, not a DALLE, which --dalle_path takes"):
        dalle3.load(tmp_path / "vae")


def test_the_default_model_is_the_one_in_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_HOME", str(tmp_path))
    monkeypatch.setattr("dalle3.shipped.ASSETS", tmp_path / "assets")
    with pytest.raises(CheckpointError, match="put or link a model folder there"):
        dalle3.load()
    tiny.write_model(tmp_path / "default")
    assert dalle3.load().generate(PROMPT, n=1)


def test_every_error_of_a_load_is_one_of_ours(tmp_path):
    (tmp_path / "page.pt").write_text("<html>log in</html>")
    for path in (tmp_path / "absent.pt", tmp_path / "page.pt", tmp_path):
        with pytest.raises(Dalle3Error):
            dalle3.load(path)


def test_bfloat16_draws(folder):
    assert dalle3.load(folder, dtype="bfloat16", device="cpu").generate(PROMPT, n=2, seed=0)
