"""A picture that kills or stalls the decoder costs itself, and the next one is decoded as ever."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from models.outcomes import Reason, Verification
from models.settings import Settings
from tests.support.bombs import baseline_of_scans, encode, flat, flat_png, lying_avif
from tests.support.poison import PIXELS_MAX, slow_jpeg
from tests.support.processes import until
from tests.support.site import picture
from worker.careful import CarefulDecoder, PlainDecoder
from worker.errors import PictureError
from worker.memory import give_large_blocks_back
from worker.picture import QUICK_BYTES_MAX, inspect
from worker.watchdog import Watchdog


@pytest.fixture
def careful():
    """A decoder that gives one picture two seconds."""
    give_large_blocks_back()  # What lies in the heap can be had beyond any limit of memory.
    decoder = CarefulDecoder(Settings(decode_seconds_max=2, image_pixels_max=PIXELS_MAX))
    yield decoder
    decoder.close()


def helper_of(decoder: CarefulDecoder) -> int:
    """Process id of the helper at work."""
    assert decoder._helper is not None
    return decoder._helper.pid


def reason_of(decoder: CarefulDecoder, body: bytes) -> tuple[Reason, str]:
    """Why a body is no picture."""
    with pytest.raises(PictureError) as raised:
        decoder.inspect(body)
    return raised.value.reason, raised.value.detail


def test_the_helper_sees_what_the_worker_sees(careful):
    """A good picture is described alike, a bad one refused alike, by one helper."""
    body = picture(7)
    assert careful.inspect(body) == inspect(body, careful.settings)
    helper = helper_of(careful)
    for bad in (b"", b"text", body[: len(body) // 2]):
        with pytest.raises(PictureError) as raised:
            inspect(bad, careful.settings)
        assert reason_of(careful, bad) == (raised.value.reason, raised.value.detail)
    assert helper_of(careful) == helper


def test_a_picture_that_takes_too_long_is_given_up(careful):
    """It ends as worker_lost within the bound, its process is gone, and the next picture is accepted."""
    careful.inspect(picture(1))
    helper = helper_of(careful)
    started = time.monotonic()
    assert reason_of(careful, slow_jpeg()) == (Reason.WORKER_LOST, "decoding it took longer than 2 seconds")
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)
    careful.inspect(picture(2))
    assert helper_of(careful) != helper


def test_a_decoder_that_dies_costs_one_picture(careful):
    """A helper killed while it decodes ends that picture as worker_lost, and says by what."""
    careful.inspect(picture(1))
    timer = threading.Timer(0.3, os.kill, (helper_of(careful), signal.SIGSEGV))
    timer.start()
    outcome = reason_of(careful, slow_jpeg())
    timer.join()
    assert outcome == (Reason.WORKER_LOST, "decoding it ended the decoder with SIGSEGV")
    assert careful.inspect(picture(2)).width > 0


def test_memory_is_bounded(careful):
    """The helper has room for the largest picture accepted, and not for what a decoder gone wild would take."""
    careful.inspect(picture(1))
    limits = Path(f"/proc/{helper_of(careful)}/limits").read_text().splitlines()
    [line] = [line for line in limits if line.startswith("Max address space")]
    assert 10**9 < int(line.split()[3]) < 2 * 10**9


def test_no_helper_outlives_its_owner(careful):
    """A helper whose owner's end of the connection is closed leaves by itself."""
    careful.inspect(picture(1))
    helper = careful._helper
    assert helper is not None
    helper.connection.close()
    until(lambda: not helper.running, "its end", 10)
    assert helper.end() == "ended the decoder with exit code 0"


def test_only_large_pictures_are_decoded_beside(careful, monkeypatch):
    """A child decodes what takes up to 32 MiB, and neither a larger one nor an AVIF that is larger than it says."""
    plain = PlainDecoder(careful.settings, Verification.FULL, Watchdog(), careful)
    small = flat("WEBP", 1000)
    assert plain.inspect(small) == inspect(small, careful.settings)
    assert careful._helper is None
    large = flat_png(3000)
    assert plain.inspect(large) == inspect(large, careful.settings)
    careful.close()
    monkeypatch.setattr("worker.picture.OTHERS_BYTES", 0)
    lie = lying_avif(6500)
    assert plain.inspect(lie) == inspect(lie, careful.settings)
    assert careful._helper is not None


def test_the_loop_decodes_what_stops_it_for_a_moment_only(careful):
    """Small JPEGs and lossy WebPs; nothing that is large, walked often, of another format or not plainly lossy."""
    plain = PlainDecoder(careful.settings, Verification.FULL, Watchdog(), careful)
    for body in (
        flat("JPEG", 10),
        flat("JPEG", 2000),
        flat("WEBP", 2000),
        flat("JPEG", 800, progressive=True),
    ):
        assert plain.inspect_at_once(body) == inspect(body, careful.settings)
    photograph = encode(Image.effect_noise((900, 900), 60), "JPEG", quality=90)
    assert len(photograph) > QUICK_BYTES_MAX
    for body in (
        photograph,
        slow_jpeg(),
        flat("JPEG", 3000),
        flat("JPEG", 1500, progressive=True),
        baseline_of_scans(1600, 3),  # It takes 15 MB.
        flat("PNG", 10),
        flat("GIF", 10),
        flat("AVIF", 10),
        flat("WEBP", 10, lossless=True),
    ):
        assert plain.inspect_at_once(body) is None
    assert careful.inspect_at_once(picture(1)) is None
    glance = PlainDecoder(careful.settings, Verification.HEADER, Watchdog(), careful)
    assert glance.inspect_at_once(flat("PNG", 10)) == inspect(
        flat("PNG", 10), careful.settings, Verification.HEADER
    )


def test_the_loop_refuses_by_the_header_only(careful):
    """That a picture does not decode is for the thread to say, which no limit of another thread can touch."""
    plain = PlainDecoder(careful.settings, Verification.FULL, Watchdog(), careful)
    garbled = flat("JPEG", 10).replace(b"\xff\xdb", b"\xff\xe5")  # Quantization tables are missing.
    assert plain.inspect_at_once(garbled) is None
    with pytest.raises(PictureError) as raised:
        plain.inspect(garbled)
    assert raised.value.reason is Reason.CORRUPT
    for bad, reason in ((b"text", Reason.NOT_AN_IMAGE), (flat("JPEG", 20)[:-40], Reason.CORRUPT)):
        with pytest.raises(PictureError) as raised:
            plain.inspect_at_once(bad)
        assert raised.value.reason is reason


def test_a_helper_without_work_ends(careful):
    """It leaves by itself, the next picture has a new one, and none is given to one that may be about to leave."""
    idle = CarefulDecoder(careful.settings, idle_seconds=0.5)
    try:
        idle.inspect(picture(1))
        first = idle._helper
        assert first is not None
        until(lambda: not first.running, "its end", 10)
        assert idle.inspect(picture(2)).width > 0
        assert first.end() == "ended the decoder with exit code 0"
        second, idle._used_at = helper_of(idle), time.monotonic() - 0.3
        assert idle.inspect(picture(3)).width > 0
        assert helper_of(idle) != second
    finally:
        idle.close()
