"""Pictures, shards and attribution of picto, from a small material; resvg only where it is installed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dalle3.errors import ConfigError, DataError, OutputError
from recipes.picto import fetch, sources
from recipes.picto.assets import list_assets
from recipes.picto.attribution import attribution
from recipes.picto.clipart import list_clips
from recipes.picto.concepts import Concept
from recipes.picto.make import Options, make
from recipes.picto.plan import plan
from recipes.picto.render import Fragment, RenderError, render_object, render_svg
from recipes.picto.repack import repack
from recipes.picto.samples import Tally, encode
from recipes.picto.scenes import draw
from tests.recipes import picto_material as small

# made by the original program (picto/build.py, `make`) from the same material: number, pixels, attributes, caption
ORIGINAL = [
    (
        1825,
        "ef13992da3300f5e",
        "a43c4fc721cbc682",
        "an orange field ox above a green city dog on a light yellow background, 3d render",
    ),
    (1496, "3c34ea88db7173c6", "ef7fe109355f4359", "three city tigers, classic shaded emoji"),
    (
        1207,
        "d04eb11c79cc5abd",
        "890604f9ecb1387c",
        "a big city cat above a small city mouse on a light purple background, cartoon emoji",
    ),
    (877, "83de161eaa0e5135", "f27d0b9da7d78f3c", "a city ox, classic shaded emoji"),
    (
        1018,
        "13394f3b2db3e791",
        "ae6de567e29c5bc2",
        "a brown glyph icon of a field mouse on a light gray background",
    ),
    (475, "c7c2a1d6d2552fdb", "9b750808df329808", "a yellow field horse, cartoon emoji"),
    (
        796,
        "d5321cbdf67176ed",
        "1a0cdf238f7cdbc7",
        "a field goose inside a dark gray circle, classic shaded emoji",
    ),
    (366, "ab9cf2244256ecf7", "89ade3fa71d26521", "a city dog on a green background, flat icon"),
]
ARCHIVES = {"art-1.tgz": "0" * 64}
QUICK = Options(size=32, limit=40, amounts=small.SMALL)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def files(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                assert file is not None
                found[f"{path.name}/{entry.name}"] = file.read()
    return found


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return small.material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def built(material, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    make(material, out, QUICK, archives=ARCHIVES)
    return out


@pytest.mark.parametrize(("number", "pixels", "about", "caption"), ORIGINAL)
def test_a_scene_gives_the_picture_captions_and_attributes_of_the_original(material, number, pixels, about, caption):
    planned = next(p for p in plan(material.assets, [], amounts=small.SMALL) if p.number == number)
    drawn = draw(planned.scene, material)
    assert drawn is not None
    sample = encode(planned, drawn, size=256, form="png")
    original = {name: value for name, value in sample.about.items() if name != "key"}
    assert sample.captions[0] == caption
    assert digest(json.dumps(original, sort_keys=True).encode()) == about
    assert digest(Image.open(io.BytesIO(sample.picture)).tobytes()) == pixels


def test_the_same_options_give_the_same_bytes_whatever_the_number_of_processes(material, built, tmp_path):
    make(material, tmp_path / "again", Options(size=32, limit=40, amounts=small.SMALL, jobs=2), archives=ARCHIVES)
    for path in built.glob("*.tar"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_splits_built_alone_have_the_bytes_they_have_in_the_whole(material, built, tmp_path):
    make(material, tmp_path / "some", replace(QUICK, splits=("train",)), archives=ARCHIVES)
    assert [path.name for path in (tmp_path / "some").glob("*.tar")] == ["train-00000.tar"]
    assert (tmp_path / "some/train-00000.tar").read_bytes() == (built / "train-00000.tar").read_bytes()


def test_every_sample_is_a_picture_its_caption_and_attributes(built):
    found = files(built)
    for name, data in found.items():
        if name.endswith(".png"):
            about = json.loads(found[name[:-4] + ".json"])
            assert Image.open(io.BytesIO(data)).size == (32, 32)
            assert found[name[:-4] + ".txt"].decode() == about["captions"][0]
            assert name == f"{about['split']}-00000.tar/{about['key']}.png"


def test_every_sample_names_its_package_and_licence_as_the_sources_do(built):
    abouts = [json.loads(data) for name, data in files(built).items() if name.endswith(".json")]
    assert abouts
    for about in abouts:
        source = sources.BY_STYLE[about["style"]]
        assert (about["package"], about["license"]) == (source.label, source.licence)


def test_key_txt_can_hold_every_caption(material, tmp_path):
    make(material, tmp_path / "out", Options(size=8, limit=4, amounts=small.SMALL, all_captions=True), archives={})
    found = files(tmp_path / "out")
    name = next(name for name in found if name.endswith(".txt"))
    assert found[name].decode().split("\n") == json.loads(found[name[:-4] + ".json"])["captions"]


def test_the_attribution_of_a_build_names_every_package_artist_and_licence_in_it(built):
    text = (built / "ATTRIBUTION.md").read_text()
    for name, data in files(built).items():
        if name.endswith(".json"):
            source = sources.BY_STYLE[json.loads(data)["style"]]
            assert f"`{source.label}`" in text
            assert source.credit in text
            assert re.search(rf"^- {re.escape(source.licence)}: ", text, re.M)


def test_an_attribution_of_everything_leaves_no_source_out():
    tally = Tally()
    tally.styles.update(sources.BY_STYLE.keys())
    tally.authors.update(["Ann Author", ""])
    text = attribution(tally, ARCHIVES)
    for source in (*sources.BY_STYLE.values(), sources.NAMES):
        assert source.label in text
        assert source.credit in text
    assert "Permission is hereby granted" in text
    assert "- Ann Author (1)" in text
    assert "- not named in the file (1)" in text
    assert "art-1.tgz" in text


def test_every_archive_is_locked_and_the_characters_package_pinned():
    lock = json.loads((fetch.HERE / "LOCK.json").read_text())
    names = {f"{source.package.lstrip('@').replace('/', '-')}-{source.version}.tgz" for source in sources.NPM}
    assert names < set(lock)
    (clip_art,) = set(lock) - names
    assert clip_art.startswith("openclipart-svg_1%3a0.18+dfsg-19")
    pins = (fetch.HERE / "requirements.txt").read_text().split()
    assert {source.label for source in sources.CHARACTERS} <= set(pins)


def test_a_download_that_differs_from_the_lock_is_refused(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in json.loads((fetch.HERE / "LOCK.json").read_text()):
        (folder / name).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"SHA-256 .* but LOCK.json has .* fetch it again"):
        fetch.fetch(tmp_path)


def test_the_door_opens_without_numpy_pillow_and_resvg():
    code = "import sys, recipes.picto.build; print(*{'numpy', 'PIL', 'torch', 'resvg_py'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(only=("singel",)), "--only: there is no singel; expected some of single, "),
        (Options(splits=("test",)), "--splits: there is no test; expected some of train, val, "),
        (Options(exclude=("emoji",)), "--exclude: there is no emoji; expected some of "),
        (Options(size=0), "--size is 0; expected 1 or more"),
    ],
)
def test_options_that_cannot_be_are_named(material, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        make(material, tmp_path / "out", options, archives={})


def test_an_earlier_build_is_not_overwritten(material, built):
    with pytest.raises(OutputError, match="exists already"):
        make(material, built, QUICK, archives={})


def test_repacking_changes_size_and_format_and_nothing_else(built, tmp_path):
    repack(built, tmp_path / "small", size=16, form="webp")
    old, new = files(built), files(tmp_path / "small")
    assert [name.replace(".png", ".webp") for name in old] == list(new)
    for name, data in new.items():
        if name.endswith(".webp"):
            assert Image.open(io.BytesIO(data)).size == (16, 16)
        else:
            assert data == old[name]


def test_a_folder_without_shards_cannot_be_repacked(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.tar files"):
        repack(tmp_path, tmp_path / "out", size=16, form="png")


def write_icons(folder: Path, icons: dict[str, dict]) -> None:
    folder.mkdir(parents=True)
    (folder / "icons.json").write_text(json.dumps({"width": 36, "icons": icons}))


def test_icons_are_matched_to_concepts_by_their_own_table_their_label_or_unicode(tmp_path):
    for source in (*sources.EMOJI, *sources.ICONS):
        icons = {"wolf-face": {"body": "<a/>"}, "red-fox": {"body": "<b/>"}, "same-as-fox": {"body": "<b/>"}}
        if source.style != "fluent-3d":
            write_icons(tmp_path / source.style / "package", icons)
    (tmp_path / "noto" / "package" / "chars.json").write_text('{"1F43A": "wolf-face", "1f98a-fe0f": "same-as-fox"}')
    concepts = {
        "1f43a": Concept(hexcode="1f43a", base="1f43a", label="wolf", group=3, emoji="🐺"),
        "1f98a": Concept(hexcode="1f98a", base="1f98a", label="red fox", group=3, emoji="🦊"),
    }
    assets = list_assets(tmp_path, concepts, without=["clip", "twemoji"])
    assert [asset.name for asset in assets if asset.style == "noto"] == ["noto/1f98a", "noto/1f43a"]
    assert len([asset for asset in assets if asset.style == "game-icon"]) == 3
    assert not [asset for asset in assets if asset.style == "twemoji"]


def clip_svg(title: str, *, rights: str = "PublicDomain", extra: str = "") -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg"><dc:title>{title}</dc:title>{rights}{extra}'
        "<dc:creator><dc:title>Ann Author</dc:title></dc:creator>"
        "<dc:subject><rdf:li>dog</rdf:li><rdf:li>unsorted</rdf:li></dc:subject></svg>"
    )


def test_clip_art_is_kept_when_free_of_text_in_the_public_domain_and_titled_in_english(tmp_path):
    folder = tmp_path / "animals" / "bugs"
    folder.mkdir(parents=True)
    (folder / "a.svg").write_text(clip_svg("Happy Dog (2)"))
    (folder / "b.svg").write_text(clip_svg("Happy dog", rights="all rights reserved"))
    (folder / "c.svg").write_text(clip_svg("Happy dog", extra="<text>hello</text>"))
    (folder / "dog_with_hat_bw.svg").write_text(clip_svg("Xyzzy plugh"))
    (folder / "e.svg").write_text(clip_svg("Happy Dog (2)"))  # the same drawing again
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "f.svg").write_text(clip_svg("Dog"))
    clips = list_clips(tmp_path, {"happy", "dog", "with", "hat"})
    assert [clip.title for clip in clips] == ["happy dog", "dog with hat in black and white"]
    assert [clip.words for clip in clips] == ["insect dog", "insect dog"]
    assert clips[0].author == "Ann Author"


def test_an_svg_object_is_cut_out_centred_and_scaled():
    pytest.importorskip("resvg_py")
    body = '<rect x="128" y="64" width="256" height="128" fill="#dc282d"/>'
    image = render_object(Fragment(body=body, box=(0, 0, 512, 512)))
    assert image is not None
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, 0, 0)
    assert image.size == (256, 256)
    assert abs(left - (256 - right)) <= 3
    assert abs(top - (256 - bottom)) <= 3
    assert 180 < right - left < 226
    assert image.getpixel((128, 128)) == (220, 40, 45, 255)


def test_an_empty_svg_gives_no_object():
    pytest.importorskip("resvg_py")
    assert render_object(Fragment(body="", box=(0, 0, 36, 36))) is None


def test_an_svg_that_cannot_be_drawn_is_reported():
    pytest.importorskip("resvg_py")
    with pytest.raises(RenderError, match="could not draw"):
        render_svg("<svg", 8, 8)


def test_the_evaluation_prompts_are_forty_under_what_they_test():
    lines = (fetch.HERE / "eval_prompts.txt").read_text().splitlines()
    assert {"# style-held-out", "# family-held-out", "# color-held-out"} < set(lines)
    assert len({line for line in lines if not line.startswith("#")}) == 40
