import dataclasses
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from evaluation.models import embed
from evaluation.models.embed import check_embeddings, embed_images, embed_texts, load_encoder
from evaluation.sets.images import ImageSet, UnreadableImage, folder_images
from evaluation.sets.renderings import read_renderings
from pipeline.schema import UserError
from tests.evaluation.builders import FakeEncoder, png, write_evaluation

NUM = 23
WHOLE = ["key.json", "vectors.npy", "whole.json"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 4)
    monkeypatch.setattr(embed, "BLOCK_ROWS", 8)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(NUM):
        (folder / f"{number:02d}.png").write_bytes(png(number))
    return folder_images("set", folder, [f"{number:02d}.png" for number in range(NUM)])


def files_in(cache):
    """Names of all files, of a cache of one set."""
    (folder,) = cache.iterdir()
    return sorted(path.name for path in folder.iterdir())


def expected(images: ImageSet) -> np.ndarray:
    encoder = FakeEncoder()
    rows = encoder.embed_images(np.stack([encoder.preprocess(images.open(n)[0]) for n in range(len(images))]))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_rows_come_back_in_order_at_length_1(images, tmp_path):
    encoder = FakeEncoder()
    embedded = embed_images(encoder, images, cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(embedded.vectors, expected(images), rtol=1e-6)
    assert encoder.num_embedded == NUM and embedded.positions.tolist() == list(range(NUM))


def test_what_was_embedded_is_read_again_for_the_same_encoder_and_not_for_another(images, tmp_path):
    first = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")
    again, other = FakeEncoder(), FakeEncoder(hash="def")
    second = embed_images(again, images, cache_dir=tmp_path / "cache")
    embed_images(other, images, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(second.vectors, first.vectors)
    assert (again.num_embedded, other.num_embedded) == (0, NUM)
    assert second.content_hash == first.content_hash


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_rows(images, tmp_path):
    whole = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "whole")

    class Killed(FakeEncoder):
        def embed_images(self, pixels):
            if self.num_embedded >= 8:
                raise KeyboardInterrupt
            return super().embed_images(pixels)

    with pytest.raises(KeyboardInterrupt):
        embed_images(Killed(), images, cache_dir=tmp_path / "cut")
    encoder = FakeEncoder()
    resumed = embed_images(encoder, images, cache_dir=tmp_path / "cut")
    assert encoder.num_embedded == NUM - 8
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    assert resumed.content_hash == whole.content_hash


def test_two_workers_embed_one_set_together(images, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 1)
    monkeypatch.setattr(embed, "BLOCK_ROWS", 2)
    whole = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "whole")
    barrier = threading.Barrier(2)
    encoders = []

    class Waiting(FakeEncoder):
        def embed_images(self, pixels):
            if self.num_embedded in (0, 2):
                barrier.wait(timeout=60)  # both are at work at once, and later each has finished a block
            return super().embed_images(pixels)

    results = []

    def work():
        encoder = Waiting()
        encoders.append(encoder)
        results.append(np.array(embed_images(encoder, images, cache_dir=tmp_path / "two").vectors))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 2
    for rows in results:
        np.testing.assert_array_equal(rows, whole.vectors)
    assert all(encoder.num_embedded < NUM for encoder in encoders)
    assert files_in(tmp_path / "two") == WHOLE


def test_a_worker_that_is_slower_than_all_the_others_stops_and_leaves_nothing_behind(images, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BATCH_SIZE", 1)
    monkeypatch.setattr(embed, "BLOCK_ROWS", 1)
    whole = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "whole")

    class Slow(FakeEncoder):
        def embed_images(self, pixels):
            if self.num_embedded == 0:
                embed_images(FakeEncoder(), images, cache_dir=tmp_path / "two")  # another does all meanwhile
            return super().embed_images(pixels)

    encoder = Slow()
    embedded = embed_images(encoder, images, cache_dir=tmp_path / "two")
    np.testing.assert_array_equal(embedded.vectors, whole.vectors)
    assert encoder.num_embedded == 5  # those that it had claimed, to decode them ahead
    assert files_in(tmp_path / "two") == WHOLE


def test_a_set_is_embedded_once_whatever_benchmarks_call_it(images, tmp_path):
    embed_images(FakeEncoder(), images, cache_dir=tmp_path)
    again = FakeEncoder()
    embed_images(again, dataclasses.replace(images, name="another"), cache_dir=tmp_path)
    assert again.num_embedded == 0


def test_sets_of_equal_names_sizes_and_times_are_not_taken_for_each_other(tmp_path):
    rows = []
    for folder, shade in ((tmp_path / "train", 10), (tmp_path / "test", 200)):
        folder.mkdir()
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(folder / "0.ppm")  # sizes do not depend on the pixels
        os.utime(folder / "0.ppm", (0, 0))
        rows.append(embed_images(FakeEncoder(), folder_images("set", folder, ["0.ppm"]), cache_dir=tmp_path).vectors)
    assert not np.array_equal(*rows)


def test_a_merge_that_fails_leaves_no_file_of_rows(images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluation.models.embed.os.replace", full)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        embed_images(FakeEncoder(), images, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("spoil", "words"), [(np.nan, "is not finite"), (np.inf, "is not finite"), (0.0, "is a zero vector")]
)
def test_a_broken_embedding_is_an_error_that_names_the_picture(images, tmp_path, spoil, words):
    with pytest.raises(UserError, match=f"01.png {words}"):
        embed_images(FakeEncoder(spoil=spoil), images, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("vectors.npy"))


def test_float16_that_overflowed_is_an_error():
    with np.errstate(over="ignore"):
        rows = np.array([[1.0, 2.0], [70000.0, 1.0]]).astype(np.float16)
    with pytest.raises(UserError, match="b is not finite"):
        check_embeddings(rows, np.array(["a", "b"]))


def test_an_unreadable_or_missing_picture_ends_the_run(images, tmp_path):
    (tmp_path / "pictures" / "05.png").write_bytes(png(5)[:60])
    with pytest.raises(UserError, match=r"picture 05.png \(60 bytes\) cannot be read"):
        embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")
    (tmp_path / "pictures" / "05.png").unlink()
    with pytest.raises(UserError, match="picture 05.png of set cannot be read"):
        embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")


def test_with_a_limit_unreadable_pictures_are_left_out_and_counted(images, tmp_path):
    for number in (5, 6):
        (tmp_path / "pictures" / f"{number:02d}.png").write_bytes(b"no picture")
    embedded = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache", max_unreadable=2)
    assert embedded.num_unreadable == 2 and len(embedded.vectors) == NUM - 2
    assert embedded.positions.tolist() == [n for n in range(NUM) if n not in (5, 6)]
    with pytest.raises(
        UserError,
        match="2 pictures of set cannot be read, the limit is 1; repair or remove them, or raise --max-unreadable",
    ):
        embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache", max_unreadable=1)


def test_a_picture_that_reading_itself_finds_broken_is_counted_wherever_it_stands(images, tmp_path):
    def read(position):
        if position == 0:
            raise UnreadableImage("picture 00.png cannot be read")
        return images.read(position)

    broken = dataclasses.replace(images, read=read)
    embedded = embed_images(FakeEncoder(), broken, cache_dir=tmp_path / "cache", max_unreadable=1)
    assert embedded.num_unreadable == 1 and embedded.positions.tolist() == list(range(1, NUM))


class Words(FakeEncoder):
    """Counts the texts that it embeds, and fails at the one named `stop`."""

    def __init__(self, stop=None, **options):
        super().__init__(**options)
        self.stop = stop

    def embed_texts(self, texts):
        if self.stop in texts:
            raise KeyboardInterrupt
        self.num_embedded += len(texts)
        return super().embed_texts(texts)


TEXTS = [f"text {number}" for number in range(20)]


def test_texts_are_embedded_once_each_and_kept(tmp_path):
    first, again, other = Words(), Words(), Words(hash="def")
    rows = embed_texts(first, "names", [*TEXTS, "text 3"], cache_dir=tmp_path)
    assert first.num_embedded == 20 and rows[20].tobytes() == rows[3].tobytes()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert embed_texts(again, "names", [*TEXTS, "text 3"], cache_dir=tmp_path).tobytes() == rows.tobytes()
    embed_texts(other, "names", TEXTS, cache_dir=tmp_path)
    assert again.num_embedded == 0 and other.num_embedded == 20


def test_kept_texts_are_known_by_their_order_and_the_size_of_blocks(tmp_path, monkeypatch):
    rows = embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path)
    assert embed_texts(Words(), "names", TEXTS[::-1], cache_dir=tmp_path)[::-1].tobytes() == rows.tobytes()
    monkeypatch.setattr(embed, "BLOCK_ROWS", 6)
    assert embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path).tobytes() == rows.tobytes()


def test_a_kept_block_of_another_length_is_embedded_again(tmp_path, capsys):
    rows = embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*/000000000008.npy")
    np.save(path, np.load(path)[:-1])
    assert embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path).tobytes() == rows.tobytes()
    assert "7 rows of 8" in capsys.readouterr().err


def test_texts_go_on_where_a_run_was_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_texts(Words(stop="text 17"), "names", TEXTS, cache_dir=tmp_path)
    rest = Words()
    rows = embed_texts(rest, "names", TEXTS, cache_dir=tmp_path)
    assert rest.num_embedded == 4
    assert rows.tobytes() == embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path / "other").tobytes()


def test_kept_texts_that_are_damaged_are_embedded_again(tmp_path, capsys):
    rows = embed_texts(Words(), "names", TEXTS, cache_dir=tmp_path)
    (path,) = tmp_path.glob("*/000000000008.npy")
    path.write_bytes(path.read_bytes()[:90])
    again = Words()
    assert embed_texts(again, "names", TEXTS, cache_dir=tmp_path).tobytes() == rows.tobytes()
    assert again.num_embedded == 8 and "cannot be read" in capsys.readouterr().err


def test_a_text_without_a_direction_is_named(tmp_path):
    encoder = FakeEncoder()
    encoder.embed_texts = lambda texts: np.array([[0.0, 0.0] if text == "b" else [1.0, 0.0] for text in texts])
    with pytest.raises(UserError, match="the embedding of b is a zero vector"):
        embed_texts(encoder, "names", ["a", "b"], cache_dir=tmp_path)


def test_a_changed_picture_is_embedded_again(images, tmp_path):
    first = embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")
    (tmp_path / "pictures" / "03.png").write_bytes(png(99, size_px=14))
    changed = folder_images("set", tmp_path / "pictures", images.ids.tolist())
    second = embed_images(FakeEncoder(), changed, cache_dir=tmp_path / "cache")
    assert not np.array_equal(first.vectors[3], second.vectors[3])
    assert first.content_hash != second.content_hash


def test_a_broken_cache_is_made_again(images, tmp_path, capsys):
    embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("whole.json")
    path.write_text('{"content_hash": "x"')
    embed_images(FakeEncoder(), images, cache_dir=tmp_path / "cache")
    assert "embedding again" in capsys.readouterr().err
    assert json.loads(path.read_text())["num_rows"] == NUM


def test_an_empty_set_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        embed_images(FakeEncoder(), folder_images("set", tmp_path, []), cache_dir=tmp_path)


def test_a_folder_without_encoder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished encoder"):
        load_encoder(tmp_path)


def test_pictures_are_read_sorted_and_the_hash_follows_the_bytes(tmp_path):
    path = tmp_path / "evaluation.parquet"
    write_evaluation(path)
    set_ = read_renderings(path)
    assert set_.image_ids.tolist() == sorted(set_.image_ids.tolist())
    assert int(set_.heldout_entity.sum()) == 8
    write_evaluation(path, num_entities=5)
    assert read_renderings(path).data_hash != set_.data_hash


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="evaluation.parquet is missing; make it with"):
        read_renderings(tmp_path / "evaluation.parquet")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_renderings(tmp_path / "x.parquet")
