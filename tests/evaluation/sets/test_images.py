import io

import numpy as np
import pytest
from PIL import Image

from evaluation.protocol import hash_of
from evaluation.sets.images import LabelledImages, UnreadableImage, absent_images, decode, folder_images, read_all
from pipeline.schema import UserError
from tests.evaluation.builders import png


def test_a_box_is_cut_out_first_and_belongs_to_the_digest(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    whole = folder_images("set", tmp_path, ["a.png"])
    cut = folder_images("set", tmp_path, ["a.png"], boxes=[(2.0, 3.0, 8.0, 7.0)])
    picture, digest = cut.open(0)
    assert picture.size == (6, 4)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(whole.open(0)[0])[3:7, 2:8])
    assert digest != whole.open(0)[1] and cut.fingerprint != whole.fingerprint


@pytest.mark.parametrize(
    "box",
    [
        (8.0, 3.0, 2.0, 7.0),
        (2.0, 3.0, 8.0, 3.2),
        (2.0, 3.0, float("nan"), 7.0),
        (0.0, 0.0, float("inf"), 7.0),
        (100.0, 3.0, 120.0, 7.0),
    ],
)
def test_a_box_with_nothing_in_it_is_an_error_that_names_picture_and_box(tmp_path, box):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match=rf"picture a.png of set has the box \({box[0]}, {box[1]}, {box[2]}") as caught:
        folder_images("set", tmp_path, ["a.png"], boxes=[box]).open(0)
    assert not isinstance(caught.value, UnreadableImage)  # which some may be, where it is allowed


def test_what_is_no_picture_is_told_without_an_address(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(
        UnreadableImage, match=r"a.png \(10 bytes\) cannot be read \(not a picture of the formats PNG, [A-Z, ]+\);"
    ):
        folder_images("set", tmp_path, ["a.png"]).open(0)


@pytest.mark.parametrize("at_a_time", [2, 256])
def test_reading_all_leaves_out_what_is_broken_up_to_a_limit(tmp_path, monkeypatch, at_a_time):
    monkeypatch.setattr("evaluation.sets.images._READ_AHEAD", at_a_time)
    names = [f"{number}.png" for number in range(5)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"" if number in (1, 3) else png(number))
    images = folder_images("set", tmp_path, names, boxes=[(0, 0, number + 1, 2) for number in range(5)])
    left, positions, contents = read_all(images, max_unreadable=2)
    assert left.ids.tolist() == ["0.png", "2.png", "4.png"] and positions.tolist() == [0, 2, 4]
    assert left.open(1)[0].size == (3, 2) and left.open(1)[1] == images.open(2)[1]
    whole = folder_images("set", tmp_path, ["0.png", "2.png", "4.png"], boxes=left.boxes)
    same, _, again = read_all(whole)
    assert again == contents == left.fingerprint == same.fingerprint
    (tmp_path / "2.png").write_bytes(png(9))
    assert read_all(whole)[2] != contents
    with pytest.raises(
        UserError,
        match="2 pictures of set cannot be read, the limit is 1; repair or remove them, or raise --max-unreadable",
    ):
        read_all(images, max_unreadable=1)
    with pytest.raises(UnreadableImage, match="1.png"):
        read_all(images)


def test_reading_all_needs_one_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 pictures of set can be read"):
        read_all(folder_images("set", tmp_path, ["a.png"]), max_unreadable=5)


def test_the_truth_of_labelled_pictures_follows_their_labels_and_the_names_of_the_classes(tmp_path):
    images = folder_images("set", tmp_path, ["a.png", "b.png"])

    def truth(labels, names):
        return LabelledImages(images=images, labels=np.array(labels), class_names=names).truth

    assert truth([0, 1], ("ant", "bee")) == truth([0, 1], ("ant", "bee"))
    assert len({truth([0, 1], ("ant", "bee")), truth([1, 0], ("ant", "bee")), truth([0, 1], ("bee", "ant"))}) == 3


def test_transparent_parts_become_white_or_lose_their_alpha():
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), "a", on_white=True).getpixel((0, 0)) == (255, 255, 255)
    assert decode(buffer.getvalue(), "a").getpixel((0, 0)) == (255, 0, 0)


def test_a_colour_that_stands_for_transparent_stays_that_colour():
    buffer = io.BytesIO()
    Image.new("P", (2, 2), 0).save(buffer, "GIF", transparency=0)
    picture = decode(buffer.getvalue(), "a")
    assert picture.getpixel((0, 0)) == (0, 0, 0) and "transparency" not in picture.info


def test_a_picture_is_not_turned_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert folder_images("set", tmp_path, ["a.jpg"]).open(0)[0].size == (8, 4)


def test_a_missing_and_a_broken_picture_are_named(tmp_path):
    (tmp_path / "b.png").write_bytes(b"no picture")
    images = folder_images("set", tmp_path, ["a.png", "b.png"])
    with pytest.raises(UnreadableImage, match="picture a.png of set cannot be read"):
        images.open(0)
    with pytest.raises(UnreadableImage, match=r"picture b.png \(10 bytes\) cannot be read"):
        images.open(1)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # "café" in Unicode's forms NFC and NFD


def test_a_picture_is_found_however_a_list_or_the_disk_spells_its_accents(tmp_path):
    (tmp_path / DECOMPOSED).mkdir()
    for number in (1, 2):
        (tmp_path / DECOMPOSED / f"{DECOMPOSED}{number}.png").write_bytes(png(number))
    listed = folder_images("set", tmp_path, [f"{COMPOSED}/{COMPOSED}2.png"])
    assert listed.read(0) == png(2) and listed.ids.tolist() == [f"{COMPOSED}/{COMPOSED}2.png"]
    walked = folder_images("set", tmp_path, [f"{DECOMPOSED}/{DECOMPOSED}2.png"])
    assert walked.read(0) == png(2) and walked.ids.tolist() == listed.ids.tolist()
    assert walked.fingerprint == listed.fingerprint
    assert absent_images("set", [f"{DECOMPOSED}/x"]).ids.tolist() == [f"{COMPOSED}/x"]
    with pytest.raises(UnreadableImage, match="picture café/no.png of set cannot be read"):
        folder_images("set", tmp_path, [f"{COMPOSED}/no.png"]).open(0)


def test_two_names_that_differ_in_the_spelling_of_an_accent_alone_are_an_error(tmp_path):
    with pytest.raises(UserError, match="set has two ids that are equal after Unicode normalisation"):
        folder_images("set", tmp_path, [COMPOSED, DECOMPOSED])


def test_16_bit_pictures_stay_different_and_those_without_a_range_are_refused_by_name(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 257 * 200, np.uint16)).save(tmp_path / "b.tif")
    Image.fromarray(np.full((4, 4), 200, np.float32)).save(tmp_path / "c.tif")
    images = folder_images("set", tmp_path, ["a.png", "b.tif", "c.tif"])
    assert images.open(0)[0].getpixel((0, 0)) == (100, 100, 100)
    assert images.open(1)[0].getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(
        UnreadableImage, match=r"c.tif \(\d+ bytes\) cannot be read \(its values are floats outside 0 to 1"
    ):
        images.open(2)


def test_a_palette_with_transparency_by_colour_is_read_without_a_warning():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes([0, 128]))
    picture = decode(buffer.getvalue(), "a")  # a warning is an error here
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]
    assert "transparency" not in picture.info


def test_a_path_that_utf8_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"the path of a picture of set, caf\\xe9.png is not valid UTF-8"):
        folder_images("set", tmp_path, ["caf\udce9.png"])
    with pytest.raises(UserError, match=r"the text half \\ud83d is not valid UTF-8; rename or correct it"):
        hash_of(["whole", "half \ud83d"])
