"""Priors at two ends of a pipe: whatever is sent, both know the same."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from inrecon.frame import Key
from inrecon_server.job import Progress
from inrecon_server.priors import STREAMS, Priors

KEYS = st.builds(Key, slice=st.integers(0, 2))
PRIORS = st.dictionaries(KEYS, st.binary(min_size=1, max_size=2), max_size=3)


def told(sender: Priors, receiver: Priors, stream: str | None, priors: Mapping[Key, bytes]) -> Mapping[Key, bytes]:
    """What the receiver makes of what the sender sends of `priors`."""
    return receiver.received(stream, sender.sent(stream, Progress(priors=priors))).priors


@given(
    steps=st.lists(st.tuples(st.integers(0, STREAMS + 2), PRIORS, PRIORS), max_size=40),
    lost=st.sets(st.integers(0, 39)),
)
def test_a_job_finds_what_its_stream_has_and_the_stream_what_its_job_has_made(
    steps: list[tuple[int, Mapping[Key, bytes], Mapping[Key, bytes]]], lost: set[int]
) -> None:
    front, process = Priors(), Priors()
    streams: dict[int, dict[Key, bytes]] = {}
    for number, (stream, elsewhere, made) in enumerate(steps):
        if number in lost:
            front, process = Priors(), Priors()
        known = streams.setdefault(stream, {})
        known.update(elsewhere)  # by another process
        found = told(front, process, str(stream), known)
        assert found == known
        known.update(told(process, front, str(stream), {**found, **made}))
        assert known == {**found, **made}
        assert front.streams == process.streams
        assert len(front.streams) <= STREAMS


def test_what_the_other_end_has_is_not_sent_again() -> None:
    front, process = Priors(), Priors()
    first = {Key(slice=0): b"a", Key(slice=1): b"b"}
    assert told(front, process, "stream", first) == first
    later = {**first, Key(slice=1): b"c"}
    assert front.sent("stream", Progress(priors=later)).priors == {Key(slice=1): b"c"}
    assert process.sent("stream", Progress(priors=first)).priors == {}
    assert front.sent(None, Progress(priors=first)).priors == first
