"""What image files hold, decoding and resizing."""

import os

import numpy as np
import pytest
from PIL import Image

from taet.data.images import SUFFIXES, decode_where_possible, resized, survey
from taet.errors import UserError


def save(path, mode="RGB", size=(6, 4), colour=(10, 20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def decode(path):
    """The pixels of one file."""
    return next(decode_where_possible([path], None))[1]


def read(paths, size=None):
    return np.concatenate(list(survey(paths, size).read(None)))


def turned(path, orientation):
    """An image of 6 x 3 pixels whose left half is black, to be turned as its tag says."""
    pixels = np.full((3, 6), 255, np.uint8)
    pixels[:, :3] = 0
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_antialiased_and_keeps_constant_images_and_right_sizes(channels):
    stripes = np.zeros((2, 16, 16, channels), np.uint8)
    stripes[:, ::2] = 200
    small = np.concatenate(list(resized(iter([stripes]), 4)))
    assert small.shape == (2, 4, 4, channels)
    assert np.abs(small[:, 1:3].astype(int) - 100).max() <= 12  # without antialiasing it is 0 or 200
    constant = np.full((3, 6, 8, channels), 77, np.uint8)
    assert (np.concatenate(list(resized(iter([constant[:1], constant[1:]]), 12))) == 77).all()
    square = np.random.default_rng(0).integers(0, 256, (3, 6, 6, channels), np.uint8)
    assert (np.concatenate(list(resized(iter([square]), 6))) == square).all()


def test_alpha_is_dropped_palettes_give_no_warning_and_16_bits_are_rounded(tmp_path):
    Image.new("RGBA", (5, 4), (9, 8, 7, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, 0].tolist() == [9, 8, 7]
    Image.new("RGB", (5, 4), (0, 255, 0)).convert("P").save(tmp_path / "a.png", transparency=bytes([128] * 256))
    assert (decode(tmp_path / "a.png") == np.full((4, 5, 3), (0, 255, 0))).all()
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png").squeeze() == np.rint(levels / 257)).all()
    for deep in (np.full((4, 4), 255, np.int32), np.zeros((4, 4), np.float32)):
        Image.fromarray(deep).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"cannot be read: '.*a\.tif' \(it .*allowed: 8 or 16"):
            read([tmp_path / "a.tif"])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied_and_the_first_page_is_read(tmp_path, suffix):
    path = turned(tmp_path / f"a.{suffix}", 6)  # to be turned by 90 degrees: left becomes top
    image = decode(path)
    assert image.shape[:2] == (6, 3)
    assert image[:2].max() < 50
    assert image[-2:].min() > 200
    assert survey([path]).sizes.tolist() == [[3, 6]]
    assert read([path]).shape[:3] == (1, 6, 3)
    if suffix != "jpg":
        frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
        options = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert (decode(path) == np.full((4, 5, 3), (255, 0, 0))).all()


def test_grey_and_colour_files_together_are_colour_and_sizes_must_agree(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert read(paths)[:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    assert read(paths[:1], 8).shape == (1, 8, 8, 1)
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png' is 8x6 pixels, '.*b\.png' is 4x4.*--data\.size, for a trained"):
        read(paths)
    assert read(paths, 5).shape == (2, 5, 5, 3)
    assert survey(paths, 5).sentences()[-1] == "resized to 5x5; 1 of 2 are not square: squeezed"
    assert survey(paths[1:], 5).sentences()[-1] == "resized to 5x5"
    assert not any("resized" in one for one in survey(paths[1:], 4).sentences())


def test_a_survey_and_decoding_agree_about_any_mode_and_kind_of_file(tmp_path):
    paths = []
    for suffix in sorted(SUFFIXES):
        for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "YCbCr", "PA"):
            path = tmp_path / f"{mode}{suffix}"
            try:
                Image.new("L" if mode == "I;16" else "RGB", (6, 4)).convert(mode).save(path)
                paths.append(path)
            except (OSError, ValueError):  # there is no such file
                path.unlink(missing_ok=True)
    assert len(paths) > 40
    Image.new("I;16", (6, 4), 257 * 5).save(inverted := tmp_path / "white.tif", tiffinfo={262: 0})
    assert decode(inverted).max() == 250
    Image.new("L", (6, 4), 250).save(tmp_path / "signed.tif", tiffinfo={339: 2})  # -6
    assert decode(tmp_path / "signed.tif").startswith("it holds 32-bit, signed or")
    for path in paths:
        found, shape = survey([path]), decode(path).shape
        assert shape[1::-1] == tuple(found.sizes[0])
        assert (len(shape) == 2) == found.grey[0]
        assert read([path]).shape == (1, 4, 6, 1 if found.grey[0] else 3)


def test_chosen_files_are_decoded_alone_and_the_key_changes_with_them(tmp_path):
    paths = [save(tmp_path / f"{i}.png", colour=(i, 0, 0)) for i in range(5)] + [save(tmp_path / "grey.png", "L")]
    files = survey(paths, 8)
    assert files.shape == (6, 8, 8, 3)
    assert [block[0, 0, 0, 0] for block in files.read(np.array([3, 1]))] == [3, 1]
    before = files.key
    os.utime(paths[0], (1, 1))
    assert files.key != before
    assert survey(paths, 9).key != files.key
