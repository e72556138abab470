"""Decoding and resizing of images."""

import numpy as np
import pytest
from PIL import Image

from taet.data.images import decode, decode_all, resize
from taet.errors import UserError


def test_resizing_averages_when_it_shrinks():
    stripes = np.zeros((2, 16, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize(stripes, 4)
    assert small.shape == (2, 4, 4, 3)
    assert np.abs(small[:, 1:3].astype(int) - 100).max() <= 12  # without antialiasing it is 0 or 200


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_keeps_constant_images_channels_and_right_sizes(channels):
    images = np.full((3, 6, 8, channels), 77, np.uint8)
    assert (resize(images, 12) == np.full((3, 12, 12, channels), 77)).all()
    square = images[:, :, :6]
    assert resize(square, 6) is square


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_greyscale_modes_stay_grey(tmp_path, mode):
    Image.new("L", (5, 4), 255).convert(mode).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", None)
    assert image.shape == (4, 5)
    assert (image == 255).all()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif")]
)
def test_colour_modes_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (5, 4), (255, 0, 0)).convert(mode).save(path)
    assert (decode(path, None) == np.full((4, 5, 3), (255, 0, 0))).all()


def test_palette_with_transparency_gives_no_warning(tmp_path):
    image = Image.new("RGB", (5, 4), (0, 255, 0)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes([128] * 256))
    assert (decode(tmp_path / "a.png", None) == np.full((4, 5, 3), (0, 255, 0))).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", None).tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("levels", [np.full((4, 4), 1e6, np.int32), np.zeros((4, 4), np.float32)])
def test_other_depths_are_refused(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"cannot read image '.*a\.tif'.*allowed: 8 or 16"):
        decode(tmp_path / "a.tif", None)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("L", (6, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg", None).shape == (6, 3)


def test_grey_and_colour_files_together_are_colour(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png")
    images = decode_all([tmp_path / "a.png", tmp_path / "b.png"], None)
    assert images[:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]
    assert decode_all([tmp_path / "a.png"], 8).shape == (1, 8, 8, 1)


@pytest.mark.parametrize(("content", "reason"), [(b"", "it is empty"), (b"GIF89a no", ""), (None, "No such file")])
def test_an_unreadable_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read image '{path}': .*{reason}"):
        decode(path, None)


def test_a_truncated_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:600])
    with pytest.raises(UserError, match=r"cannot read image '.*a\.jpg'"):
        decode_all([tmp_path / "a.jpg"], None)


def test_mixed_sizes_name_two_files_both_sizes_and_the_flag(tmp_path):
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    Image.new("L", (5, 4)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(UserError, match=r"a\.png' is 8x6 pixels, '.*b\.png' is 5x4.*--data\.size 6"):
        decode_all(paths, None)
    assert decode_all(paths, 4).shape == (2, 4, 4, 1)
