"""What image files hold, decoding and resizing."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from taet.data import images as module
from taet.data.images import (
    SUFFIXES,
    Files,
    decode_all,
    decode_where_possible,
    resized,
    scaled,
    survey,
    unreadable,
)
from taet.errors import UserError


def save(path, mode="RGB", size=(6, 4), colour=(10, 20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def decode(path):
    """The pixels of one file."""
    return next(decode_where_possible([path], None))[1]


def turned(path, orientation, size=(6, 3)):
    """An image whose left half is black, to be turned as its tag says."""
    pixels = np.full((size[1], size[0]), 255, np.uint8)
    pixels[:, : size[0] // 2] = 0
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


@pytest.mark.parametrize("turn", [False, True])
def test_images_that_are_not_square_are_squeezed_cut_or_get_bars(turn):
    columns = np.repeat(np.uint8([[10, 20, 20, 20, 20, 30]]), 2, axis=0)  # 6 x 2 pixels
    image = Image.fromarray(columns.T if turn else columns)
    found = {fit: np.asarray(scaled(image, (3, 3), fit)) for fit in ("squeeze", "crop", "pad")}
    found = {fit: pixels.T if turn else pixels for fit, pixels in found.items()}
    assert (found["squeeze"][:, 1] == 20).all()
    assert (found["squeeze"][:, 0] < 20).all()
    assert (found["crop"] == 20).all()
    assert (found["pad"] == [[0, 0, 0], found["squeeze"][0], [0, 0, 0]]).all()
    assert (np.asarray(scaled(image, (12, 12), "pad")).any(int(not turn)).sum()) == 4


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_greyscale_modes_stay_grey(tmp_path, mode):
    Image.new("L", (5, 4), 255).convert(mode).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png")
    assert image.shape == (4, 5)
    assert (image == 255).all()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif")]
)
def test_colour_modes_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(path)
    assert (decode(path) == np.full((4, 5, 3), (255, 0, 0))).all()


def test_palette_with_transparency_gives_no_warning(tmp_path):
    image = Image.new("RGB", (5, 4), (0, 255, 0)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes([128] * 256))
    assert (decode(tmp_path / "a.png") == np.full((4, 5, 3), (0, 255, 0))).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("levels", [np.full((4, 4), 1e6, np.int32), np.zeros((4, 4), np.float32)])
def test_other_depths_are_refused(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"cannot be read: '.*a\.tif' \(it .*allowed: 8 or 16"):
        decode_all([tmp_path / "a.tif"], None)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    path = turned(tmp_path / f"a.{suffix}", 6)  # to be turned by 90 degrees: left becomes top
    image = decode(path)
    assert image.shape[:2] == (6, 3)
    assert image[:2].max() < 50
    assert image[-2:].min() > 200
    assert survey([path]).sizes.tolist() == [[3, 6]]
    assert decode_all([path], None).shape[:3] == (1, 6, 3)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert (decode(path) == np.full((4, 5, 3), (255, 0, 0))).all()


def test_an_alpha_channel_is_dropped(tmp_path):
    Image.new("RGBA", (5, 4), (9, 8, 7, 0)).save(tmp_path / "a.png")
    Image.new("LA", (5, 4), (9, 0)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert decode(paths[0])[0, 0].tolist() == [9, 8, 7]
    assert decode(paths[1])[0, 0] == 9


def test_grey_and_colour_files_together_are_colour(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    images = decode_all([tmp_path / "a.png", tmp_path / "b.png"], None)
    assert images[:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    assert decode_all([tmp_path / "a.png"], 8).shape == (1, 8, 8, 1)


def test_mixed_sizes_name_two_files_both_sizes_and_the_flag(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    Image.new("L", (5, 4)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(UserError, match=r"a\.png' is 8x6 pixels, '.*b\.png' is 5x4.*--data\.size 6"):
        decode_all(paths, None)
    assert decode_all(paths, 4).shape == (2, 4, 4, 1)


def test_a_survey_says_what_there_is(tmp_path):
    sizes = [(6, 4), (60, 40), (20, 10), (30, 30)]
    paths = [save(tmp_path / f"{i}.png", size=size) for i, size in enumerate(sizes)]
    paths += [save(tmp_path / "grey.png", "L"), turned(tmp_path / "turned.jpg", 8)]
    paths += [save(tmp_path / "palette.gif", "P"), save(tmp_path / "cmyk.tif", "CMYK")]
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "deep.png")
    paths.append(tmp_path / "deep.png")
    found = survey(paths)
    assert found.files == tuple(paths)
    assert found.sizes.tolist() == [*map(list, sizes), [6, 4], [3, 6], [6, 4], [6, 4], [6, 4]]
    assert (found.median, found.largest, found.uniform, found.channels) == ((6, 4), (60, 40), False, 3)
    assert found.sentences(10, "squeeze") == [
        "9 image files, 3x6 to 60x40, median 6x4 pixels, 3 grey, read as colour like the others",
        "8 of 9 images: not square, squeezed (e.g. '0.png')",
    ]


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
    for path in paths:
        found = survey([path])
        shape = decode(path).shape
        assert shape[1::-1] == tuple(found.sizes[0])
        assert (3 if len(shape) == 3 else 1) == found.channels
        assert decode_all([path], None).shape == (1, 4, 6, found.channels)


def test_unreadable_files_are_counted_and_named_with_the_reason(tmp_path):
    good = save(tmp_path / "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    empty, text, gone, fifo = (tmp_path / name for name in ("empty.png", "text.png", "gone.png", "fifo.png"))
    empty.write_bytes(b"")
    text.write_text("no image")
    os.mkfifo(fifo)
    paths = [good, empty, text, gone, fifo]
    assert survey(paths).files == (good,)
    assert survey(paths).unreadable == unreadable(paths)
    assert unreadable(paths) == {
        empty: "it is no image, or a damaged one",
        text: "it is no image, or a damaged one",
        gone: "there is no such file",
        fifo: "it is no ordinary file",
    }
    with pytest.raises(
        UserError, match=r"4 of 5 images cannot be read: '.*empty\.png' \(it is no image, or a damaged one"
    ):
        decode_all(paths, None)
    cut = [good, tmp_path / "cut.png", tmp_path / "cut.jpg"]
    assert not survey(cut).unreadable
    assert [*unreadable(cut)] == cut[1:]
    with pytest.raises(UserError, match=r"2 of 3 images cannot be read: '.*cut\.png' \(.*truncated.*cut\.jpg") as error:
        decode_all(cut, 32)
    assert "\n" not in str(error.value)


def test_too_many_pixels_are_refused_in_one_line_and_warnings_stay_as_they_were(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", size=(30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    before = list(warnings.filters)
    for size in (8, None):
        with pytest.raises(UserError, match=r"a\.png' \(Image size \(600 pixels\) exceeds limit"):
            decode_all([path], size)
        assert warnings.filters == before


def test_names_may_hold_anything(tmp_path):
    path = save(tmp_path / "a folder" / "Läsion nº 1 — 皮膚.PNG")
    assert decode_all([path], None).shape == (1, 4, 6, 3)


def test_chosen_files_are_decoded_alone_and_the_key_changes_with_them(tmp_path):
    paths = [save(tmp_path / f"{i}.png", colour=(i, 0, 0)) for i in range(5)] + [save(tmp_path / "grey.png", "L")]
    files = Files(survey(paths), 8)
    assert files.shape == (6, 8, 8, 3)
    assert [block[0, 0, 0, 0] for block in files.read(np.array([3, 1]))] == [3, 1]
    assert [block[0, 0, 0, 0] for block in files.at(np.array([4, 2])).read(None)] == [4, 2]
    before = files.key
    os.utime(paths[0], (1, 1))
    assert files.key != before
    assert files.key != Files(survey(paths), 8, "pad").key != Files(survey(paths), 9).key


def test_few_images_are_decoded_ahead(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    decoded = []
    monkeypatch.setattr(module, "_decode", lambda *arguments: decoded.append(arguments) or np.zeros((4, 6), np.uint8))
    images = decode_where_possible([path] * 500, None)
    next(images)
    assert len(decoded) <= module.AHEAD
    images.close()


def test_sixteen_bits_are_rounded_as_the_quotient_of_real_numbers_is(tmp_path):
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png").squeeze() == np.rint(levels / 257)).all()
