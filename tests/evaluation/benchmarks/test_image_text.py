import json

import numpy as np
import pytest
from PIL import Image

from evaluation.benchmarks.image_text import SOURCE, read_karpathy
from evaluation.models.encoder import EncoderModel
from evaluation.models.ready import EmbeddingsModel
from evaluation.protocol import Unavailable
from pipeline.schema import UserError
from tests.evaluation.builders import Asked, sources


def karpathy(pictures, **more):
    """Karpathy's layout of (file name, split, captions)."""
    return {
        "images": [
            {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in texts], **more}
            for name, split, texts in pictures
        ]
    }


PICTURES = [
    ("a.png", "test", ["a red dot", "red\n dot ", "dots", "dots", "five", "six"]),
    ("t.png", "train", ["something else"]),
    ("b.png", "test", ["a blue dot", "dots"]),
]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "coco" / "val2014").mkdir(parents=True)
    write_json(tmp_path, karpathy(PICTURES, filepath="val2014"))
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (3, 3), colour).save(tmp_path / "data" / "coco" / "val2014" / name)
    return tmp_path


def write_json(data, value, path="coco/dataset_coco.json"):
    (data / "data" / path).parent.mkdir(parents=True, exist_ok=True)
    (data / "data" / path).write_text(value if isinstance(value, str) else json.dumps(value))


class Colours:
    """Embeds pictures by their mean colour and texts by the colour they name: a whole encoder, in three numbers."""

    hash = "colours"
    has_text = True

    def preprocess(self, picture):
        return np.asarray(picture, np.float32)

    def embed_images(self, images):
        return images.mean(axis=(1, 2))

    def embed_texts(self, texts):
        return np.array([["red" in text, 1, "blue" in text] for text in texts], np.float32)


def context(data, /, *, max_unreadable=0, **options):
    model = EncoderModel(encoder=Colours(), cache_dir=data / "cache", max_unreadable=max_unreadable)
    return Asked(model=model, data_dir=data / "data", options=options)


def test_the_first_five_captions_of_the_test_split_are_used(data):
    result = context(data).run("image_text")
    assert result.counts == {
        "coco.num_images": 2,
        "coco.num_captions": 7,
        "coco.num_images_without_caption": 0,
        "coco.num_unreadable": 0,
    }
    assert result.settings == {"split": "test", "max_captions": 5}
    assert result.metrics["coco.image_to_text.recall_at_1"] == 1
    # Captions that name no colour are as close to both pictures, and the first one wins: b's "dots" is lost.
    assert result.metrics["coco.text_to_image.recall_at_1"] == pytest.approx(6 / 7)
    np.testing.assert_array_equal(result.items["coco.text_to_image.recall_at_1"], [1, 1, 1, 1, 1, 1, 0])
    assert context(data, captions="all").run("image_text").counts["coco.num_captions"] == 8
    assert context(data, captions="1").run("image_text").counts["coco.num_captions"] == 2


def test_a_picture_without_a_caption_is_a_miss_for_itself_and_a_distractor_for_captions(data):
    Image.new("RGB", (3, 3), "red").save(data / "data" / "coco" / "val2014" / "0.png")
    # As red as a.png and before it in the file: captions that name red find it first. CLIP_benchmark counts likewise.
    write_json(data, karpathy([("0.png", "test", []), *PICTURES], filepath="val2014"))
    result = context(data).run("image_text")
    assert result.counts["coco.num_images"] == 3 and result.counts["coco.num_images_without_caption"] == 1
    for k in (1, 5, 10):  # there are 7 captions: at no place, not at the one after the last
        np.testing.assert_array_equal(result.items[f"coco.image_to_text.recall_at_{k}"], [0, 1, 1])
    # Of a's captions two name red and three no colour: 0.png comes first. b's "a blue dot" finds b, "dots" does not.
    np.testing.assert_array_equal(result.items["coco.text_to_image.recall_at_1"], [0, 0, 0, 0, 0, 1, 0])
    assert result.metrics["coco.text_to_image.recall_at_5"] == 1


def test_a_file_may_start_with_a_byte_order_mark_and_spell_accents_otherwise_than_the_disk(data):
    folder = data / "data" / "coco" / "images"
    folder.mkdir()
    Image.new("RGB", (3, 3), "red").save(folder / "cafe\u0301.png")
    content = json.dumps(karpathy([("caf\u00e9.png", "test", ["red"])]), ensure_ascii=False)
    write_json(data, "\ufeff" + content)
    assert context(data).run("image_text").metrics["coco.image_to_text.recall_at_1"] == 1


def test_captions_lose_their_line_breaks(data):
    read = read_karpathy(data / "data" / "coco" / "dataset_coco.json")
    assert read.captions == ("a red dot", "red dot", "dots", "dots", "five", "a blue dot", "dots")
    assert read.paths == ("val2014/a.png", "val2014/b.png")
    assert read.image_of.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_both_data_sets_are_reported_under_their_names(data):
    write_json(data, karpathy(PICTURES), "flickr30k/dataset_flickr30k.json")
    (data / "data" / "flickr30k" / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (3, 3), "red").save(data / "data" / "flickr30k" / "images" / name)
    result = context(data).run("image_text")
    assert {key.split(".")[0] for key in result.metrics} == {"coco", "flickr30k"}
    assert result.metrics["coco.image_to_text.recall_at_1"] != result.metrics["flickr30k.image_to_text.recall_at_1"]
    only = context(data, data="flickr30k/dataset_flickr30k.json").run("image_text")
    assert {key.split(".")[0] for key in only.metrics} == {"flickr30k"}


def test_a_data_set_that_is_not_there_is_named_and_the_other_is_measured(data):
    result = context(data).run("image_text")
    (line,) = result.not_measured
    assert line.endswith("(coco/val2014/..., flickr30k/images/...)")
    assert f"flickr30k/dataset_flickr30k.json is not there; get it from {SOURCE}" in line
    write_json(data, karpathy(PICTURES), "flickr30k/dataset_flickr30k.json")
    without_pictures = context(data).run("image_text")
    assert without_pictures.metrics == result.metrics
    (line,) = without_pictures.not_measured
    assert line.startswith("flickr30k: none of the 2 pictures is there; put a.png and the others into")
    assert context(data, data="coco/dataset_coco.json").run("image_text").not_measured == []


def test_all_files_are_read_before_anything_is_embedded(data):
    write_json(data, "{cut", "flickr30k/dataset_flickr30k.json")
    asked = context(data)
    with pytest.raises(UserError, match="dataset_flickr30k.json is not valid JSON"):
        asked.run("image_text")
    assert not (data / "cache").exists()


def test_the_folder_with_any_of_the_pictures_is_theirs(data):
    folder = data / "data" / "coco"
    (folder / "val2014").rename(folder / "pictures")
    (folder / "images").mkdir()
    (folder / "pictures").rename(folder / "images" / "val2014")
    (folder / "images" / "val2014" / "a.png").unlink()  # the first
    with pytest.raises(UserError, match=r"1 of 2 pictures are missing in .*images, val2014/a.png"):
        context(data).run("image_text")


def test_the_truth_is_which_captions_are_whose(data):
    truths = []
    for image_of in ([0, 0, 1], [0, 1, 1]):
        pictures = [("a.png", "test", []), ("b.png", "test", [])]
        for caption, image in zip("xyz", image_of, strict=True):
            pictures[image][2].append(caption)
        write_json(data, karpathy(pictures, filepath="val2014"))
        asked = context(data)
        truths.append(sources(asked.run("image_text"))["coco"].truth)
    assert None not in truths and truths[0] != truths[1]


def test_ready_embeddings_need_no_pictures(data):
    (data / "ready").mkdir()
    rows = {"coco": ["val2014/a.png", "val2014/b.png"], "coco_captions": ["a red dot", "a blue dot"]}
    for name, ids in rows.items():
        np.save(data / "ready" / f"{name}.npy", np.eye(2, dtype=np.float32))
        (data / "ready" / f"{name}.ids").write_text("\n".join(ids))
    for path in (data / "data" / "coco" / "val2014").iterdir():
        path.unlink()
    model = EmbeddingsModel(folder=data / "ready")
    result = Asked(model=model, data_dir=data / "data", options={"captions": "1"}).run("image_text")
    assert set(result.metrics.values()) == {1.0}
    np.save(data / "ready" / "coco.npy", np.eye(2, 3, dtype=np.float32))
    with pytest.raises(UserError, match="of the pictures of coco have 3 dimensions, those of the captions 2; embed bo"):
        Asked(model=model, data_dir=data / "data", options={"captions": "1"}).run("image_text")


def test_captions_without_their_picture_are_an_error_that_names_it(data):
    (data / "data" / "coco" / "val2014" / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 pictures are missing in .*val2014/b.png first"):
        context(data).run("image_text")


def test_where_it_is_allowed_captions_leave_with_their_picture(data):
    (data / "data" / "coco" / "val2014" / "a.png").unlink()
    result = context(data, max_unreadable=1).run("image_text")
    assert result.counts == {
        "coco.num_images": 1,
        "coco.num_captions": 2,
        "coco.num_images_without_caption": 0,
        "coco.num_unreadable": 1,
    }
    assert set(result.metrics.values()) == {1.0}


def test_a_broken_picture_is_an_error_that_names_it(data):
    (data / "data" / "coco" / "val2014" / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="picture val2014/b.png .* cannot be read"):
        context(data).run("image_text")


def test_without_any_data_the_benchmark_is_unavailable_and_says_where_to_get_it(data):
    for path in (data / "data" / "coco" / "val2014").iterdir():
        path.unlink()
    with pytest.raises(Unavailable, match="none of the 2 pictures is there; put val2014/a.png and the others into"):
        context(data).run("image_text")
    (data / "data" / "coco" / "dataset_coco.json").unlink()
    with pytest.raises(Unavailable, match=r"coco.json is not there; get it from https.*flickr30k.json is not there"):
        context(data).run("image_text")
    with pytest.raises(UserError, match="mine.json is not there"):
        context(data, data="mine.json").run("image_text")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{cut", "is not valid JSON"),
        ("[]", 'lacks the list "images"'),
        ({"images": []}, 'lacks the list "images"'),
        ({"images": [{"file_name": "a.png", "id": 1}], "annotations": []}, "picture 0 .*KeyError: 'filename'"),
        ({"images": ["a.png"]}, "picture 0 of the list is not in Karpathy's layout"),
        ({"images": [{"filename": "a.png", "split": "test", "sentences": ["a dot"]}]}, "picture 0"),
        (
            karpathy([("a.png", "test", []), ("b.png", "test", [])]),
            "the 2 pictures of split 'test' have no captions",
        ),
        (karpathy([("a.png", "test", ["a", " "])]), "a.png has 2 captions, 1 of them with words"),
        (karpathy([("a.png", "val", ["a"]), ("b.png", "val", ["b"])]), r"no split 'test'; it has val \(2\)"),
        (karpathy([("a.png", "test", ["a"]), ("a.png", "test", ["b"])]), "has the duplicate id a.png"),
    ],
)
def test_a_file_that_is_not_karpathys_is_named(data, content, words):
    write_json(data, content)
    with pytest.raises(UserError, match=words):
        context(data).run("image_text")


@pytest.mark.parametrize("captions", ["0", "-1", "five", ""])
def test_a_number_of_captions_that_is_none_is_refused(data, captions):
    with pytest.raises(UserError, match=f"captions is '{captions}'; it must be a whole number of at least 1, or all"):
        context(data, captions=captions).run("image_text")


def test_an_unknown_split_is_refused(data):
    with pytest.raises(UserError, match=r"has no split 'dev'; it has test \(2\), train \(1\)"):
        context(data, split="dev").run("image_text")
