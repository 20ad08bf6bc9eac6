"""Pictures of the book as WebP, without loss, where that is less: half the bytes of PNG."""

import base64
import hashlib
import io
import os
import re

from PIL import Image

PICTURE = re.compile(r"[\w-]+\.png\b")
INLINE = re.compile(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)")

INSIDE = 2_000
"""Bytes from which a picture is a file of its own, a quarter smaller: in a page it is base64."""


def webp(png):
    """The same pixels in half the bytes."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGBA").save(packed, "WEBP", lossless=True, quality=50, method=3)
    return packed.getvalue()


def slim_inline(path, images):
    """What stands for a picture in the page itself: a file, or less of the same."""

    def change(found):
        png = base64.b64decode(found[1])
        packed = webp(png)
        if len(packed) > INSIDE:
            name = f"{hashlib.sha1(packed).hexdigest()}.webp"
            (images / name).write_bytes(packed)
            return os.path.relpath(images / name, path.parent)
        kinds = {"webp": packed, "png": png}
        kind = min(kinds, key=lambda name: len(kinds[name]))
        return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}"

    return change


def slim_pictures(images):
    """WebP for PNG; returns what pages should say now for each."""
    for path in images.glob("*.png"):
        slim = path.with_suffix(".webp")
        if not slim.exists():  # the name is a hash of the content
            slim.write_bytes(webp(path.read_bytes()))
        path.unlink()
    return {f"{path.stem}.png": path.name for path in images.glob("*.webp")}
