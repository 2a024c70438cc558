import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from workers.moe.pictures import MAX_BYTES, BadPicture, as_data_url, check_picture, pixels_of, shrunk


def encoded(picture: Image.Image, form: str = "PNG") -> str:
    written = io.BytesIO()
    picture.save(written, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def bomb(width: int, height: int) -> str:
    """A valid header of so many pixels over a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(content).decode()


def test_a_picture_of_the_models_size_comes_pixel_for_pixel_with_or_without_its_prefix():
    picture = noise(32, 32)
    url = as_data_url(picture)
    assert np.array_equal(pixels_of(url, 32), np.asarray(picture))
    assert np.array_equal(pixels_of(url.partition(",")[2], 32), np.asarray(picture))
    assert pixels_of(encoded(picture, "JPEG"), 32).shape == (32, 32, 3)


def test_another_shape_is_fitted_into_the_square_and_transparency_is_white():
    wide = pixels_of(as_data_url(Image.new("RGB", (64, 32), "red")), 32)
    assert wide[16].tolist() == [[255, 0, 0]] * 32
    assert not wide[:8].any() and not wide[-8:].any()
    clear = pixels_of(as_data_url(Image.new("RGBA", (32, 32), (255, 0, 0, 0))), 32)
    assert (clear == 255).all()


def test_a_large_picture_is_made_smaller_and_a_small_one_is_left_alone():
    assert Image.open(io.BytesIO(base64.b64decode(shrunk(as_data_url(noise(600, 300)), 256).partition(",")[2]))).size == (256, 128)
    small = encoded(noise(40, 20), "JPEG")
    assert shrunk(small, 256) == small


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [
        ("https://example.org/cat.png", "not fetched", "bad_image"),
        ("data:text/html;base64,aGk=", "not of a PNG or JPEG", "bad_image"),
        ("not base64!", "not base64", "bad_image"),
        (base64.b64encode(b"hello").decode(), "no PNG or JPEG", "bad_image"),
        (encoded(noise(16, 16), "GIF"), "not of a PNG or JPEG", "bad_image"),
        (encoded(noise(16, 16), "GIF").partition(",")[2], "no PNG or JPEG", "bad_image"),
        (as_data_url(noise(16, 16))[:-400], "no PNG or JPEG", "bad_image"),
        (bomb(60_000, 60_000), "too many pixels", "image_too_large"),
        (bomb(3_900, 3_900), "3,900", "image_too_large"),
        ("A" * (MAX_BYTES * 4 // 3 + 8), "larger than", "image_too_large"),
    ],
    ids=["address", "another kind", "no base64", "no picture", "GIF", "bare GIF", "cut off", "bomb", "many pixels", "many bytes"],
)
def test_what_is_no_picture_is_refused_with_what_to_do(text, said, reason):
    with pytest.raises(BadPicture, match=said) as refusal:
        check_picture(text)
    assert refusal.value.reason == reason
