import numpy as np
import pytest

from evaluation.embed import BATCH_SIZE, embed_pictures, load_encoder
from evaluation.errors import UserError
from evaluation.pictures import read_pictures
from tests.evaluation.builders import pictures, write_evaluation

ROWS = [(f"i{number:03d}", "cat", "n", False, False) for number in range(BATCH_SIZE + 3)]


class MeanColour:
    """An encoder whose embedding is the mean colour; it records the shapes that it is given."""

    def __init__(self, hash="abc", spoil=None):
        self.hash = hash
        self.spoil = spoil
        self.shapes = []

    def preprocess(self, picture):
        return np.asarray(picture.resize((4, 4)), np.float32) / 255

    def embed_images(self, images):
        self.shapes.append(images.shape)
        embeddings = images.mean(axis=(1, 2))
        if self.spoil is not None:
            embeddings[1] = self.spoil
        return embeddings


def test_every_batch_has_one_shape_and_rows_come_back_in_order_at_length_1(tmp_path):
    encoder, set_ = MeanColour(), pictures(ROWS)
    embeddings = embed_pictures(encoder, set_, cache_dir=str(tmp_path))
    assert encoder.shapes == [(BATCH_SIZE, 4, 4, 3)] * 2
    expected = encoder.preprocess(set_.open(BATCH_SIZE + 1)).mean(axis=(0, 1))
    np.testing.assert_allclose(embeddings[BATCH_SIZE + 1], expected / np.linalg.norm(expected), rtol=1e-5)


def test_the_cache_is_read_for_the_same_encoder_and_not_for_another(tmp_path):
    set_ = pictures(ROWS[:3])
    first = embed_pictures(MeanColour(), set_, cache_dir=str(tmp_path))
    again = MeanColour()
    np.testing.assert_array_equal(embed_pictures(again, set_, cache_dir=str(tmp_path)), first)
    assert again.shapes == []
    other = MeanColour(hash="def")
    embed_pictures(other, set_, cache_dir=str(tmp_path))
    assert len(other.shapes) == 1


def test_a_broken_cache_is_made_again(tmp_path, capsys):
    set_ = pictures(ROWS[:3])
    embed_pictures(MeanColour(), set_, cache_dir=str(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"PK\x03\x04 cut")
    encoder = MeanColour()
    embed_pictures(encoder, set_, cache_dir=str(tmp_path))
    assert len(encoder.shapes) == 1
    assert "embedding again" in capsys.readouterr().err


@pytest.mark.parametrize(("spoil", "words"), [(np.nan, "is not finite"), (0.0, "is a zero vector")])
def test_a_broken_embedding_is_an_error_that_names_the_picture_and_nothing_is_cached(tmp_path, spoil, words):
    with pytest.raises(UserError, match=f"i001 {words}"):
        embed_pictures(MeanColour(spoil=spoil), pictures(ROWS[:3]), cache_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_picture_is_named(tmp_path):
    set_ = pictures(ROWS[:3])
    set_.images[2] = set_.images[2][:60]
    with pytest.raises(UserError, match=r"picture i002 \(60 bytes\) cannot be read"):
        embed_pictures(MeanColour(), set_, cache_dir=str(tmp_path))


def test_a_folder_without_encoder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no finished encoder"):
        load_encoder(tmp_path)


def test_pictures_are_read_sorted_and_the_hash_follows_the_bytes(tmp_path):
    path = tmp_path / "evaluation.parquet"
    write_evaluation(path)
    set_ = read_pictures(path)
    assert set_.image_ids.tolist() == sorted(set_.image_ids.tolist())
    assert int(set_.heldout_entity.sum()) == 8
    write_evaluation(path, num_entities=5)
    assert read_pictures(path).data_hash != set_.data_hash


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(UserError, match="evaluation.parquet is missing; make it with"):
        read_pictures(tmp_path / "evaluation.parquet")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="is no Parquet file"):
        read_pictures(tmp_path / "x.parquet")
