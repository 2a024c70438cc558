"""A picture in a record or a request: a data URL or plain base64 of a PNG or JPEG, checked before it is decoded. Needs no torch."""

import base64
import binascii
import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (size, size, 3)

MAX_BYTES = 4 * 1024**2
MAX_SIDE = 4096  # pixels; with MAX_PIXELS, what a file of few bytes may not exceed when it is decoded
MAX_PIXELS = 8_000_000
FORMATS = ("PNG", "JPEG")
_DATA_URL = re.compile(r"data:image/(?:png|jpe?g);base64,", re.IGNORECASE)


class BadPicture(ValueError):
    """A picture cannot be used. The message is for people; `reason` is the word that a report counts it under."""

    def __init__(self, message: str, reason: str = "bad_image"):
        super().__init__(message)
        self.reason = reason


def check_picture(text: str) -> None:
    """Raises BadPicture for what is no whole PNG or JPEG of a bounded size."""
    _open(text)


def pixels_of(text: str, size: int) -> Pixels:
    """The picture as (size, size, 3) uint8, RGB: fitted into the square, black around it, on white where it is transparent. BadPicture."""
    from PIL import Image, ImageOps

    picture = _open(text)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    rgb = picture.convert("RGB")
    return np.array(rgb if rgb.size == (size, size) else ImageOps.pad(rgb, (size, size)), np.uint8)


def shrunk(text: str, side: int) -> str:
    """The same picture as a data URL, made no larger than `side` × `side` pixels. BadPicture."""
    from PIL import Image

    picture = _open(text)
    if max(picture.size) <= side:
        return f"data:image/{(picture.format or '').lower()};base64,{base64.b64encode(_bytes_of(text)).decode()}"
    small = picture.convert("RGBA" if picture.mode in ("RGBA", "LA", "PA", "P") else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return as_data_url(small)


def as_data_url(picture: Any) -> str:
    """A Pillow image as the data URL of a PNG."""
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _bytes_of(text: str) -> bytes:
    text = text.strip()
    if text[:5].lower() in ("http:", "https"):
        raise BadPicture("A picture is sent with the request, as a data: URL; addresses on the web are not fetched.")
    encoded = text[found.end() :] if (found := _DATA_URL.match(text)) else text
    if text[:5].lower() == "data:" and not found:
        raise BadPicture("The data: URL is not of a PNG or JPEG in base64 (data:image/png;base64,…).")
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise BadPicture(
            f"The picture is larger than {MAX_BYTES // 1024**2} MB. Make it smaller: the model sees it in few pixels anyway.", "image_too_large"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture("The picture is not base64. Send a PNG or JPEG as a data: URL (data:image/png;base64,…).") from error


def _open(text: str) -> Any:
    """The decoded Pillow image. Its size is read from the header, and refused, before a pixel is decoded."""
    from PIL import Image

    content = _bytes_of(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, larger limit warns before it refuses
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = picture.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                raise BadPicture(
                    f"The picture has {width:,} × {height:,} pixels; {MAX_SIDE:,} a side are the most. Make it smaller.", "image_too_large"
                )
            picture.load()
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"The picture has too many pixels; {MAX_SIDE:,} a side are the most. Make it smaller.", "image_too_large") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        raise BadPicture("The picture is no PNG or JPEG that can be read; it may be damaged. Save it again as one of these.") from error
    return picture
