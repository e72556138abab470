"""What image files hold, decoding and resizing."""

import os

import numpy as np
import pytest
from PIL import Image

from taet.data.class_folders import SUFFIXES
from taet.data.image_files import as_grey, decode_where_possible, resized, survey
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
def test_resizing_is_antialiased(channels):
    stripes = np.zeros((2, 16, 16, channels), np.uint8)
    stripes[:, ::2] = 200
    small = np.concatenate(list(resized(iter([stripes]), 4)))
    assert small.shape == (2, 4, 4, channels)
    # without antialiasing it is 0 or 200
    assert np.abs(small[:, 1:3].astype(int) - 100).max() <= 12


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_constant_images(channels):
    constant = np.full((3, 6, 8, channels), 77, np.uint8)
    assert (np.concatenate(list(resized(iter([constant[:1], constant[1:]]), 12))) == 77).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_right_size_are_not_resized(channels):
    square = np.random.default_rng(0).integers(0, 256, (3, 6, 6, channels), np.uint8)
    assert (np.concatenate(list(resized(iter([square]), 6))) == square).all()


def test_transparent_pixels_have_their_stored_colour_by_default(tmp_path):
    Image.new("RGBA", (5, 4), (9, 8, 7, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, 0].tolist() == [9, 8, 7]
    (note,) = [note for note in survey([tmp_path / "a.png"]).notes() if note.kind == "transparent"]
    assert "--data.transparent white, black or grey" in note


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("grey", 128), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_pixels_have_the_colour_of_the_background(mode, background, level, tmp_path):
    image, path = Image.new("RGBA", (5, 4), (90, 90, 90, 0)), tmp_path / "a.png"
    image.putpixel((0, 0), (90, 90, 90, 255))
    if mode in ("LA", "RGBA"):
        image.convert(mode).save(path)
    else:
        palette = Image.new("P", (5, 4), 1)
        palette.putpalette([90] * 9)
        palette.putpixel((0, 0), 0)
        palette.save(path, transparency=bytes([255, 0, 0]))
    files = survey([path], background=background)
    (pixels,) = next(files.read(None))
    assert np.unique(pixels[0, 0]).tolist() == [90]
    assert np.unique(pixels[1:]).tolist() == [level]
    assert pixels.shape[2] == (1 if mode == "LA" else 3)
    assert [note for note in files.notes() if note.kind == "transparent"] == [
        f"1 of 1 image files have a channel of transparency: transparent pixels are {background}"
    ]


def test_a_pixel_that_is_half_transparent_is_mixed_with_the_background(tmp_path):
    Image.new("RGBA", (5, 4), (100, 0, 200, 128)).save(tmp_path / "a.png")
    (pixels,) = next(survey([tmp_path / "a.png"], background="white").read(None))
    assert abs(pixels[0, 0].astype(int) - [177, 127, 227]).max() <= 1


def test_images_without_transparency_are_not_noted_and_not_changed(tmp_path):
    path = save(tmp_path / "a.png")
    files = survey([path], background="white")
    assert next(files.read(None))[0, 0, 0].tolist() == [10, 20, 30]
    assert "transparent" not in {note.kind for note in files.notes()}


def test_the_key_of_a_cache_depends_on_the_background(tmp_path):
    path = save(tmp_path / "a.png")
    assert survey([path]).key != survey([path], background="white").key


@pytest.mark.filterwarnings("error")
def test_palettes_with_transparency_give_no_warning(tmp_path):
    Image.new("RGB", (5, 4), (0, 255, 0)).convert("P").save(
        tmp_path / "a.png", transparency=bytes([128] * 256)
    )
    assert (decode(tmp_path / "a.png") == np.full((4, 5, 3), (0, 255, 0))).all()


def test_16_bits_are_rounded_to_8(tmp_path):
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png").squeeze() == np.rint(levels / 257)).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_more_than_16_bits_are_refused(kind, tmp_path):
    Image.fromarray(np.full((4, 4), 255, kind)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"cannot be read: '.*a\.tif' \(it .*allowed: 8 or 16"):
        read([tmp_path / "a.tif"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"no image", "not an image, or damaged"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "its format is AVIF; allowed: BMP, "),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "its format is HEIC; allowed: BMP, "),
        (b"<!DOCTYPE html><html>404</html>", "its format is an HTML page; allowed: BMP, "),
        (b"\0" * 128 + b"DICM", "its format is DICOM; allowed: BMP, "),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS: run git lfs pull"),
    ],
)
def test_what_is_no_image_is_named_by_its_format(content, said, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    assert said in decode(tmp_path / "a.jpg")


def test_a_file_that_is_not_ordinary_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert decode(tmp_path / "a.png") == "not an ordinary file"


def test_a_missing_file_is_named(tmp_path):
    assert decode(tmp_path / "a.png") == "No such file or directory"


def test_colours_become_grey_by_their_luma():
    colours = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert abs(as_grey(colours)[..., 0] - luma).max() < 1


def test_grey_images_that_are_stored_as_colours_keep_their_levels():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (as_grey(np.repeat(levels, 3, axis=3)) == levels).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    path = turned(tmp_path / f"a.{suffix}", 6)  # to be turned by 90 degrees: left becomes top
    image = decode(path)
    assert image.shape[:2] == (6, 3)
    assert image[:2].max() < 50
    assert image[-2:].min() > 200
    assert survey([path]).sizes.tolist() == [[3, 6]]
    assert read([path]).shape[:3] == (1, 6, 3)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "gif"])
def test_the_first_of_several_pages_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (decode(path) == np.full((4, 5, 3), (255, 0, 0))).all()


def test_grey_and_colour_files_together_are_colour(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert read(paths)[:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_grey_files_alone_have_one_channel(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    assert read([tmp_path / "a.png"], 8).shape == (1, 8, 8, 1)


def test_images_of_different_sizes_need_a_size(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(
        UserError, match=r"a\.png' is 8x6 pixels, '.*b\.png' is 4x4.*--data\.size, for a trained"
    ):
        read(paths)
    assert read(paths, 5).shape == (2, 5, 5, 3)


def test_notes_say_what_resizing_does(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert survey(paths, 5).notes()[-1] == "resized to 5x5; 1 of 2 are not square: squeezed"
    assert survey(paths[1:], 5).notes()[-1] == "resized to 5x5"
    assert not any("resized" in one for one in survey(paths[1:], 4).notes())


def test_a_survey_and_decoding_agree_about_any_mode_and_kind_of_file(tmp_path):
    paths = []
    for suffix in sorted(SUFFIXES):
        for mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "YCbCr", "PA"):
            path = tmp_path / f"{mode}{suffix}"
            try:
                Image.new("L" if mode == "I;16" else "RGB", (6, 4)).convert(mode).save(path)
                with Image.open(path) as image:
                    image.load()
                paths.append(path)
            except (OSError, ValueError):  # there is no such file, or Pillow cannot read its own
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
    paths = [save(tmp_path / f"{i}.png", colour=(i, 0, 0)) for i in range(5)] + [
        save(tmp_path / "grey.png", "L")
    ]
    files = survey(paths, 8)
    assert files.shape == (6, 8, 8, 3)
    assert [block[0, 0, 0, 0] for block in files.read(np.array([3, 1]))] == [3, 1]
    before = files.key
    os.utime(paths[0], (1, 1))
    assert files.key != before
    assert survey(paths, 9).key != files.key
