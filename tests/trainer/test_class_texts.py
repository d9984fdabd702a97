import pickle

import pytest

from pipeline.schema import UserError
from trainer.class_texts import ClassTexts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_texts_are_name_and_name_with_description_in_any_script():
    texts = ClassTexts([("Norway", "a country\nin  Europe"), ("किला", ""), ("", ""), ("half \ud83d", "")])
    assert len(texts) == 4
    assert list(texts) == [("Norway", "Norway, a country in Europe"), ("किला", "किला"), ("", ""), ("half ?", "half ?")]


@pytest.mark.parametrize("class_id", [-1, 3])
def test_there_are_no_texts_of_other_classes(class_id):
    with pytest.raises(IndexError, match=f"class {class_id} is none of the 3"):
        ClassTexts([("a", "b")] * 3)[class_id]


def test_a_pickled_copy_is_small_however_many_classes_there_are():
    texts = ClassTexts((f"name {number}", "something that one knows") for number in range(5000))
    pickled = pickle.dumps(texts)
    assert len(pickled) < 500
    copy = pickle.loads(pickled)
    assert (len(copy), copy[4999]) == (5000, ("name 4999", "name 4999, something that one knows"))


def test_the_same_texts_are_one_file_which_is_written_once_and_others_another(cache):
    ClassTexts([("name", "a")])
    (first,) = cache.iterdir()
    written = first.stat()
    ClassTexts([("name", "a")])
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    ClassTexts([("name", "b")])
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("left", [0, 5])
def test_a_file_that_was_cut_off_is_written_again(cache, left):
    ClassTexts([("name", "a")])
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:left])
    assert list(ClassTexts([("name", "a")])) == [("name", "name, a")]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_a_file_that_is_gone_is_no_fault_of_the_set(cache, damage):
    texts = ClassTexts([("another name", "a")])
    damage(next(cache.iterdir()))
    with pytest.raises(UserError, match="texts of the classes cannot be read .*texts-.*; start the command again"):
        texts[0]


def test_a_set_of_pairs_has_no_texts():
    assert list(ClassTexts([])) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOFI_CACHE", str(tmp_path / "file" / "cache"))
    message = (
        "texts of 1 classes cannot be kept on this machine .*room for 14 bytes in the environment variable MOFI_CACHE"
    )
    with pytest.raises(UserError, match=message):
        ClassTexts([("a", "b")])
