"""The two ends of a stream."""

from __future__ import annotations

import os

import pytest

from inrecon_server.streamed import opened


def test_what_is_printed_meanwhile_does_not_get_between_the_images(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(None, None) as (_, sink):
        os.write(1, b"by the way")
        sink.write(b"image")
    os.write(1, b" and more")
    assert capfd.readouterr() == ("image and more", "by the way")
