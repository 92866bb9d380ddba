import json
import os
import stat

import pytest

from resgen.errors import WriteError
from resgen.files import atomic_folder, atomic_path, nearest_path, remove_leftovers, write_json, write_text


def test_json_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(WriteError, match="not plain JSON"):
        write_json(path, {"a": {1, 2}})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise KeyError("x")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(WriteError, match=f"^cannot write '{path}': Input/output error$"), atomic_path(path):
        raise OSError(5, "Input/output error")
    with pytest.raises(WriteError, match="cannot write '.*a.txt/b': "):
        write_text(path / "b", "a file is no folder")


def test_missing_folders_are_made_and_others_may_read_the_file(tmp_path):
    write_text(tmp_path / "x" / "y" / "a.txt", "é")
    file = tmp_path / "x" / "y" / "a.txt"
    assert file.read_text(encoding="utf-8") == "é" and stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444


def test_names_that_are_no_text_are_escaped(tmp_path):
    write_text(tmp_path / "a.txt", "written to '\udcff'")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == r"written to '\udcff'"


def test_a_folder_takes_its_place_as_a_whole(tmp_path):
    place = tmp_path / "m"
    for content in ("old", "new"):
        with atomic_folder(place) as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(tmp_path) == ["m"] and os.listdir(place) == ["new"]
    with pytest.raises(KeyError), atomic_folder(place):
        raise KeyError("x")
    assert os.listdir(tmp_path) == ["m"] and os.listdir(place) == ["new"]


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "m").symlink_to("disk")
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "m") as temporary:
            (temporary / content).write_text(content)
        assert (tmp_path / "m").is_symlink() and os.listdir(tmp_path / "disk") == [content]
    assert sorted(os.listdir(tmp_path)) == ["disk", "m"]


@pytest.mark.parametrize("place", [".", "..", ""])
def test_a_folder_without_a_name_of_its_own_is_not_replaced(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WriteError, match="cannot be replaced as a whole"), atomic_folder(place):
        pass


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (".12ab.tmp", ".m.old", "m", ".hidden"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "m"]


def test_a_folder_is_written_where_the_system_opens_no_folders(tmp_path, monkeypatch):
    """Windows: only files can be opened, and synced only if they can be written."""
    opened = os.open

    def strict(path, flags, *more, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        assert flags & os.O_RDWR or flags & os.O_WRONLY or "safetensors" not in str(path)
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", strict)
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "a.safetensors").write_bytes(b"a")
        (folder / "part").mkdir()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["a.safetensors", "part"]


def test_the_nearest_path_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "photos" / "church").mkdir(parents=True)
    assert nearest_path(tmp_path / "photos" / "chruch" / "1.png") == f"did you mean '{tmp_path}/photos/church'?"
    assert nearest_path(tmp_path / "photos" / "xyz") == f"'{tmp_path}/photos' has no 'xyz'"
    monkeypatch.chdir(tmp_path)
    assert nearest_path("photo") == "did you mean 'photos'?" and nearest_path("x") == f"'{tmp_path}' has no 'x'"
