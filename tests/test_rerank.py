import dataclasses
from pathlib import Path

import pytest
import torch

from dalle3.checkpoint import Checkpoint, save_checkpoint
from dalle3.errors import CheckpointError
from dalle3.models.clip import Clip
from dalle3.models.dalle_clip import DalleClip, DalleClipConfig
from dalle3.models.discrete_vae import DiscreteVAE, DiscreteVAEConfig
from dalle3.rerank import Ranker, load_clip, load_default_clip
from dalle3.tokenizers.clip_bpe import ClipBPE
from tests.tiny import CLIP as TINY

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
READS_BPE = dataclasses.replace(TINY, vocab_size=ClipBPE.vocab_size)


def ids_of_letters(texts):
    return torch.tensor([[18, *(ord(letter) % 17 for letter in text[:3]), 19] for text in texts])


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return Clip(TINY).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 3, 20, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def nothing_at_hand(monkeypatch, tmp_path):
    """A machine that has no CLIP and no connection."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def ranked_in_batches(clip, images, size, *, keep):
    ranker = Ranker(clip, ids_of_letters, "cat", keep=keep)
    for start in range(0, len(images), size):
        some = range(start, min(start + size, len(images)))
        ranker.add(images[some.start : some.stop], some, [f"picture {i}" for i in some])
    return ranker.best()


def test_scores_are_cosines_of_picture_and_prompt(clip, images):
    expected = clip.score(clip.encode_image(images), clip.encode_text(ids_of_letters(["cat"])))[:, 0]
    torch.testing.assert_close(Ranker(clip, ids_of_letters, "cat").scores(images), expected.detach())


@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranking_is_the_same_to_the_bit_whatever_the_batch_size(clip, images, size):
    assert ranked_in_batches(clip, images, size, keep=4) == ranked_in_batches(clip, images, 1, keep=4)


def test_filling_a_batch_up_changes_no_score(clip, images, monkeypatch):
    ranker = Ranker(clip, ids_of_letters, "cat")
    alone = ranker.scores(images)
    monkeypatch.setattr(ranker, "_batch", 4)  # as on a GPU
    torch.testing.assert_close(ranker.scores(images), alone)


def test_the_best_are_kept_and_the_rest_forgotten(clip, images):
    everything = ranked_in_batches(clip, images, 2, keep=None)
    assert len(everything) == 7
    scores = [score for score, _, _ in everything]
    assert scores == sorted(scores, reverse=True)
    assert ranked_in_batches(clip, images, 2, keep=3) == everything[:3]


def test_no_more_than_the_kept_are_ever_held(clip, images):
    ranker = Ranker(clip, ids_of_letters, "cat", keep=2)
    for index, image in enumerate(images):
        ranker.add(image[None], [index], [None])
        assert len(ranker.best()) == min(index + 1, 2)


def test_among_equal_scores_the_lowest_index_wins(clip, images):
    ranker = Ranker(clip, ids_of_letters, "cat", keep=2)
    same = images[:1].expand(4, -1, -1, -1)
    score = ranker.add(same, [3, 1, 2, 0], ["d", "b", "c", "a"])[0].item()
    assert ranker.best() == [(score, 0, "a"), (score, 1, "b")]


def test_our_folder_brings_its_tokenizer(tmp_path, images):
    config = dataclasses.replace(READS_BPE, text_end="last_id")
    model = Clip(config).eval()
    checkpoint = Checkpoint(kind="clip", config=config, state=model.state_dict())
    save_checkpoint(checkpoint, tmp_path / "clip", tokenizer=ClipBPE())
    clip, tokenize = load_clip(tmp_path / "clip", device=CPU)
    assert tokenize(["a cat"]).tolist() == [[*ClipBPE().encode("a cat"), 0, 0, 0, 0]]
    assert torch.equal(clip.encode_image(images), model.encode_image(images))


def test_a_clip_with_openais_vocabulary_reads_framed_captions(tmp_path):
    checkpoint = Checkpoint(kind="clip", config=READS_BPE, state=Clip(READS_BPE).state_dict())
    save_checkpoint(checkpoint, tmp_path / "clip")
    _, tokenize = load_clip(tmp_path / "clip", device=CPU)
    assert tokenize(["a cat"]).tolist() == [[49406, *ClipBPE().encode("a cat"), 49407, 0, 0]]


def test_a_clip_without_a_tokenizer_takes_the_given_one_or_says_so(tmp_path):
    config = dataclasses.replace(READS_BPE, text_end="last_id")
    save_checkpoint(Checkpoint(kind="clip", config=config, state=Clip(config).state_dict()), tmp_path / "clip")
    with pytest.raises(CheckpointError, match="without its tokenizer"):
        load_clip(tmp_path / "clip", device=CPU)
    _, tokenize = load_clip(tmp_path / "clip", device=CPU, tokenizer=ClipBPE())
    assert tokenize(["a cat"]).shape == (1, 6)


def test_a_tokenizer_of_more_words_than_the_clip_knows_is_refused(tmp_path):
    config = dataclasses.replace(TINY, text_end="last_id")
    save_checkpoint(Checkpoint(kind="clip", config=config, state=Clip(config).state_dict()), tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"reads 20 tokens.*has 49408"):
        load_clip(tmp_path / "clip", device=CPU, tokenizer=ClipBPE())


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """A folder and the model that wrote it."""
    from transformers.models.clip import CLIPConfig, CLIPModel

    shared = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "max_position_embeddings": 6, "projection_dim": 8, **shared}
    vision = {"image_size": 16, "patch_size": 8, "projection_dim": 8, **shared}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    folder = tmp_path_factory.mktemp("hub") / "clip"
    model.save_pretrained(folder)
    return folder, model


def test_a_hugging_face_folder_gives_the_features_transformers_gives(hugging_face):
    folder, model = hugging_face
    clip, tokenize = load_clip(folder, device=CPU)
    assert isinstance(clip, Clip)
    ids, pixels = tokenize(["a cat", "two small dogs"]), torch.rand(2, 3, 16, 16)
    inputs = {"input_ids": ids, "pixel_values": clip.prepare(pixels)}
    with torch.no_grad():
        reference = model(**inputs)
        torch.testing.assert_close(clip.encode_text(ids), reference.text_embeds)
        torch.testing.assert_close(clip.encode_image(pixels), reference.image_embeds)


def test_a_hugging_face_folder_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="type 'bert'; expected 'clip'"):
        load_clip(tmp_path, device=CPU)


def test_a_hugging_face_folder_without_weights_is_refused(hugging_face, tmp_path):
    (tmp_path / "config.json").write_text((hugging_face[0] / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_clip(tmp_path, device=CPU)


@pytest.mark.usefixtures("nothing_at_hand")
def test_openais_download_is_the_default_where_the_model_brings_none(tmp_path):
    weights = torch.load(GOLDEN / "g_clip_vit.pt", weights_only=True)["state_dict"]
    weights["token_embedding.weight"] = torch.zeros(ClipBPE.vocab_size, 64)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    torch.save(weights, tmp_path / ".cache" / "clip" / "ViT-B-16.pt")
    clip, tokenize = load_default_clip(tmp_path / "model", device=CPU)
    assert clip.encode_text(tokenize(["a cat"])).shape == (1, 32)


def test_the_ranker_of_dalle_pytorch_ranks_with_the_tokenizer_of_the_dalle(tmp_path, images):
    small = {"text_width": 16, "text_layers": 1, "text_heads": 1, "vision_width": 16, "vision_layers": 1}
    config = DalleClipConfig(embed_dim=8, image_size=32, vocab_size=ClipBPE.vocab_size, vision_heads=1, **small)
    save_checkpoint(Checkpoint(kind="dalle_clip", config=config, state=DalleClip(config).state_dict()), tmp_path / "c")
    clip, tokenize = load_clip(tmp_path / "c", device=CPU, tokenizer=ClipBPE())
    assert Ranker(clip, tokenize, "a cat").scores(images).shape == (7,)


def test_a_model_that_is_no_clip_is_refused_by_its_kind(tmp_path):
    config = DiscreteVAEConfig(image_size=16, num_tokens=4, codebook_dim=4, num_layers=1, hidden_dim=4)
    checkpoint = Checkpoint(kind="discrete_vae", config=config, state=DiscreteVAE(config).state_dict())
    save_checkpoint(checkpoint, tmp_path / "vae")
    with pytest.raises(CheckpointError, match="is a discrete_vae, not a CLIP"):
        load_clip(tmp_path / "vae", device=CPU)


@pytest.mark.usefixtures("nothing_at_hand")
def test_a_hub_name_without_a_connection_fails_at_once_and_says_how_to_get_it():
    with pytest.raises(CheckpointError, match=r"hf download some/clip .* as --clip") as error:
        load_clip("some/clip", device=CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing/ViT-B-16.pt", "./clip", "clip", "a/b/c"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_clip(name, device=CPU)


@pytest.mark.usefixtures("nothing_at_hand")
def test_without_any_clip_the_error_names_all_three_places(tmp_path):
    with pytest.raises(CheckpointError, match=r"model/clip.*cache/clip/ViT-B-16\.pt.*openai/clip-vit-base-patch16"):
        load_default_clip(tmp_path / "model", device=CPU)


@pytest.mark.usefixtures("nothing_at_hand")
def test_the_clip_beside_the_model_is_the_default(tmp_path):
    checkpoint = Checkpoint(kind="clip", config=READS_BPE, state=Clip(READS_BPE).state_dict())
    save_checkpoint(checkpoint, tmp_path / "clip")
    clip, _ = load_default_clip(tmp_path, device=CPU)
    assert isinstance(clip, Clip)
