"""The index of a tar is what Python's tarfile finds; damage is told where tarfile ends in silence."""

from __future__ import annotations

import io
import itertools
import tarfile

import pytest

from dalle3.data.tar_members import BLOCK, DamagedTarError, Member, read_members

NAMES = ["a.png", "folder/b.txt", "ä.txt", "x" * 120 + ".png", "/".join(["deep" * 10] * 8) + ".json"]


def write(path, format=tarfile.PAX_FORMAT, names=NAMES):
    with tarfile.open(path, "w", format=format) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_are_those_of_tarfile(format, tmp_path):
    names = NAMES[:3] if format == tarfile.USTAR_FORMAT else NAMES
    path = write(tmp_path / "a.tar", format, names)
    with tarfile.open(path) as tar:
        expected = [Member(found.name, found.offset_data, found.size) for found in tar if found.isfile()]
    assert list(read_members(path)) == expected


def before_damage(path):
    found = []
    with pytest.raises(DamagedTarError) as error:
        found.extend(member.name for member in read_members(path))
    return found, str(error.value)


def test_a_cut_tar_gives_what_lies_before_the_cut_wherever_it_is(tmp_path):
    path = write(tmp_path / "a.tar")
    whole, members = path.read_bytes(), list(read_members(path))
    for cut in itertools.chain(range(0, members[-1].offset, 257), (members[1].offset, members[2].offset - BLOCK)):
        path.write_bytes(whole[:cut])
        found, _ = before_damage(path)
        assert found == [member.name for member in members if member.offset + member.size <= cut]


def test_a_damaged_header_is_told(tmp_path):
    path = write(tmp_path / "a.tar")
    content, third = bytearray(path.read_bytes()), list(read_members(path))[1].offset + BLOCK
    content[third : third + 8] = b"garbage!"
    path.write_bytes(content)
    assert before_damage(path) == (NAMES[:2], f"byte {third} should begin a file's header and does not")


def test_what_is_no_tar_is_told(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>" * 1000)
    assert before_damage(tmp_path / "a.tar") == ([], "byte 0 should begin a file's header and does not")
