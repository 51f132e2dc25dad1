"""Pictures within every bound of size that take a decoder many seconds."""

import io

from PIL import Image

from worker.picture import JPEG_SCANS_MAX


def slow_jpeg(side: int = 3000) -> bytes:
    """A progressive JPEG of under 100 kB whose last scan is repeated as often as is accepted: 13 s at 3000."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (90, 100, 80)).save(buffer, "JPEG", progressive=True)
    body = buffer.getvalue()
    start, end = body.rindex(b"\xff\xda"), body.rindex(b"\xff\xd9")
    scans = body.count(b"\xff\xda")
    return body[:end] + body[start:end] * (JPEG_SCANS_MAX - scans) + body[end:]
