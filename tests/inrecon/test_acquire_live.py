"""Interventional streams: what is wrong in them costs what it concerns, is named, and the stream goes on."""

import copy
import itertools
from dataclasses import replace
from functools import cache

import ismrmrd
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inrecon.acquire import Accumulator, LiveAccumulator, Memory, collector, parse_header
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, listening
from inrecon.frame import Live
from inrecon.simulate import simulate_scan

COILS, LINES = 2, 16
LAST = [ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT]
FRAMES = 8


@cache
def simulated(**changes):
    usual = {"shape": (LINES, 16), "coils": COILS, "acceleration": 2, "acs": 6, "repetitions": FRAMES}
    return simulate_scan(**{**usual, **changes})


def parsed(**changes):
    return parse_header(simulated(**changes).header)


def imaging(**changes):
    """The imaging readouts of a stream, copies of their own."""
    readouts = simulated(**changes).acquisitions
    return [copy.deepcopy(one) for one in readouts if not one.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]


def stream(repetitions, lines=range(LINES), *, flags=LAST[:1], start=0, **fields):
    """Readouts of `lines` in each of `repetitions`, the last flagged; each of its own data, in order of time."""
    made, lines = [], list(lines)
    for n, repetition in enumerate(repetitions):
        for line in lines:
            rng = np.random.default_rng((start + n, line, fields.get("slice", 0)))
            data = (rng.standard_normal((COILS, 32)) + 1j * rng.standard_normal((COILS, 32))).astype(np.complex64)
            one = ismrmrd.Acquisition.from_array(data)
            one.center_sample = 16
            one.idx.kspace_encode_step_1, one.idx.repetition = line, repetition
            one.scan_counter = one.acquisition_time_stamp = 1 + (start + n) * LINES + line
            for name, value in fields.items():
                setattr(one.idx, name, value)
            for flag in flags if line == lines[-1] else ():
                one.setFlag(flag)
            made.append(one)
    return made


def unflagged(readouts):
    for one in readouts:
        one.clear_all_flags()
    return readouts


def uncounted(readouts):
    for one in readouts:
        one.idx.repetition = 0
    return readouts


def run(readouts, *, scan=None, live=Live(), **options):  # noqa: B008
    """Frames, and texts."""
    heard = []
    accumulator = LiveAccumulator(scan or parsed(), live=live, **options)
    with listening(heard.append):
        frames = [frame for one in readouts for frame in accumulator.add(one)] + accumulator.finish()
    assert all(isinstance(event, Warned) for event in heard)
    assert accumulator.summary().frames == len(frames)
    return frames, [event.text for event in heard]


def repetitions(frames):
    return [frame.key.repetition for frame in frames]


def lines_of(frame):
    return frame.imaging.lines[:, 1].tolist()


def assert_same(frames, others):
    for one, other in zip(frames, others, strict=True):
        for name in ("key", "geometry", "protocol", "reference", "sample_time_us", "average_count"):
            assert getattr(one, name) == getattr(other, name), name
        np.testing.assert_array_equal(one.imaging.kspace, other.imaging.kspace)
        np.testing.assert_array_equal(one.imaging.lines, other.imaging.lines)
        assert (one.calibration is None) == (other.calibration is None)
        assert (one.noise is None) == (other.noise is None)


def given_by_accumulator(readouts, scan=None):
    accumulator = Accumulator(scan or parsed())
    return [frame for one in readouts for frame in accumulator.add(one)] + accumulator.finish()


class TestIntact:
    @pytest.mark.parametrize("slices", [1, 3])
    @pytest.mark.parametrize("last", [*([flag] for flag in LAST[:2]), LAST])
    def test_the_frames_are_those_of_a_scan_as_early_and_nothing_is_told(self, slices, last):
        scan = simulated(slices=slices)
        readouts = [copy.deepcopy(one) for one in scan.acquisitions]
        for one in readouts:
            for flag in set(LAST) - set(last):
                one.clearFlag(flag)
        the_scan, heard = parse_header(scan.header), []
        live, usual = LiveAccumulator(the_scan, live=Live()), Accumulator(the_scan)
        with listening(heard.append):
            for one in readouts:
                assert_same(live.add(one), usual.add(one))
        assert_same(live.finish(), usual.finish())
        assert live.summary() == usual.summary()
        assert heard == []

    @pytest.mark.parametrize("slices", [1, 3])
    def test_without_flags_they_are_the_same(self, slices):
        readouts = unflagged(imaging(slices=slices))
        frames, texts = run(readouts, scan=parsed(slices=slices))
        assert_same(
            sorted(frames, key=lambda f: f.key),
            sorted(given_by_accumulator(readouts, parsed(slices=slices)), key=lambda f: f.key),
        )
        assert texts == []

    @pytest.mark.parametrize("shot", [1, 3])
    @pytest.mark.parametrize("flags", [True, False])
    def test_slices_whose_readouts_interleave_go_on_each_by_itself(self, shot, flags):
        by_slice = [stream(range(4), slice=s, flags=LAST[:1] if flags else ()) for s in range(3)]
        parts = [[one[i : i + shot] for i in range(0, len(one), shot)] for one in by_slice]
        frames, texts = run(
            [a for parts_of in itertools.zip_longest(*parts, fillvalue=[]) for p in parts_of for a in p]
        )
        assert texts == []
        assert len(frames) == 12
        for s in range(3):
            own = [frame for frame in frames if frame.key.slice == s]
            assert repetitions(own) == [0, 1, 2, 3]
            assert_same(own, given_by_accumulator(by_slice[s]))

    def test_slices_may_count_on_their_own(self):
        slow, fast = stream([5], slice=0), stream([100, 101, 102, 103], slice=1)
        mixed = [one for i in range(LINES) for one in (slow[i], *fast[4 * i : 4 * i + 4])]
        frames, texts = run(mixed)
        assert [(f.key.slice, f.key.repetition, len(f.imaging.lines)) for f in frames if f.key.slice == 0] == [
            (0, 5, 16)
        ]
        assert repetitions([f for f in frames if f.key.slice == 1]) == [100, 101, 102, 103]
        assert texts == []

    def test_slices_that_take_turns_are_not_missed(self):
        readouts = [one for r in range(12) for one in stream([r], slice=r % 2, start=r)]
        frames, texts = run(readouts)
        assert repetitions(frames) == list(range(12))
        assert len(texts) == 1 + 1  # the first step of each slice cannot be told from a loss

    def test_averages_that_the_header_does_not_count_are_known_from_the_first_frame_on(self):
        readouts = [one for r in range(3) for a in range(2) for one in stream([r], average=a, start=2 * r + a)]
        frames, _ = run(readouts)
        assert [f.average_count for f in frames][-2:] == [2.0, 2.0]

    @pytest.mark.parametrize("mode", ["separate", "external"])
    @pytest.mark.parametrize("after", [False, True])
    def test_calibration_of_its_own_is_waited_for_and_found(self, mode, after):
        scan = parsed()
        scan = replace(scan, encodings=(replace(scan.encodings[0], calibration_mode=mode),))
        calibration = stream([0], range(5, 11), start=50)
        for one in calibration:
            one.setFlag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        movie = stream(range(3), range(0, LINES, 2))
        readouts = [*movie[:8], *calibration, *movie[8:]] if after else [*calibration, *movie]
        frames, texts = run(readouts, scan=scan)
        assert texts == []
        assert [len(f.calibration.lines) for f in frames] == [6, 6, 6]
        assert_same(frames, given_by_accumulator(readouts, scan))


class TestNothingIsCounted:
    def test_flags_end_frames(self):
        readouts = uncounted(stream(range(4)))
        frames, texts = run(readouts)
        assert_same(frames, given_by_accumulator(readouts))
        assert texts == []

    @pytest.mark.parametrize("lost", [None, 1, 7, LINES - 1])
    def test_without_flags_lines_that_come_again_end_them(self, lost):
        """Whichever line of the third frame was lost, but the first: for that the fourth frame's stands in."""
        readouts = uncounted(stream(range(6), flags=()))
        if lost is not None:
            del readouts[2 * LINES + lost]
        frames, texts = run(readouts)
        assert [len(f.imaging.lines) for f in frames] == [LINES] * 2 + [LINES - (lost is not None)] + [LINES] * 3
        assert {f.average_count for f in frames} == {1.0}
        assert texts == ([] if lost is None else [f"frame 3, slice 0: {LINES - 1} of {LINES} lines came"])

    def test_a_flag_that_was_lost_does_not_mix_two_frames(self):
        readouts = uncounted(stream(range(5)))
        del readouts[3 * LINES - 1]
        frames, texts = run(readouts)
        assert [len(f.imaging.lines) for f in frames] == [16, 16, 15, 16, 16]
        assert texts == ["frame 3, slice 0: 15 of 16 lines came"]

    def test_a_readout_that_came_twice_is_taken_once(self):
        for at in (0, 5, LINES - 1, LINES, 3 * LINES - 1):
            readouts = uncounted(stream(range(4)))
            twice = [*readouts[: at + 1], readouts[at], *readouts[at + 1 :]]
            frames, texts = run(twice)
            assert_same(frames, given_by_accumulator(readouts))
            assert len(texts) == 1
            assert "came twice" in texts[0]


def with_data(one, data):
    other = ismrmrd.Acquisition.from_array(data.astype(np.complex64))
    other.idx, other.flags, other.center_sample = one.idx, one.flags, one.center_sample
    return other


def counter(name, value):
    def change(one):
        setattr(one if name == "encoding_space_ref" else one.idx, name, value)
        return one

    return change


FAULTS = {
    "not a number": lambda one: with_data(one, one.data * np.nan),
    "too many samples": lambda one: with_data(one, np.ones((COILS, 33))),
    "no samples": lambda one: with_data(one, np.ones((COILS, 0))),
    "no channels": lambda one: with_data(one, np.ones((0, 32))),
    "another number of channels": lambda one: with_data(one, np.ones((COILS + 1, 32))),
    "zeros": lambda one: with_data(one, 0 * one.data),
    "a space that is not there": counter("encoding_space_ref", 7),
    "a repetition far on": counter("repetition", 900),
    "a repetition far back": counter("repetition", 65_000),
    "a slice that is not there": counter("slice", 900),
    "a line that is not there": counter("kspace_encode_step_1", 900),
}


class TestReadoutsThatMakeNoSense:
    @pytest.mark.parametrize("flags", [LAST[:1], []])
    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("at", [1, 5, LINES - 1, LINES, LINES + 1, 4 * LINES - 1, 4 * LINES + 7])
    def test_one_costs_no_more_than_itself(self, fault, flags, at):
        if at == 1 and fault == "another number of channels":
            at = 2  # of the first two readouts, if they contradict each other, nothing tells which is right
        readouts = stream(range(5), flags=flags)
        without = readouts[:at] + readouts[at + 1 :]
        changed = [*readouts[:at], FAULTS[fault](copy.deepcopy(readouts[at])), *readouts[at + 1 :]]
        frames, texts = run(changed)
        assert_same(frames, given_by_accumulator(without))
        assert len(frames) == 5
        assert texts

    def test_it_is_named_with_where_it_was(self):
        readouts = stream(range(5))
        for at in (2 * LINES + 3, 2 * LINES + 9):
            readouts[at] = with_data(readouts[at], readouts[at].data * np.nan)
        _, texts = run(readouts)
        told = "the readout of line 3, slice 0, repetition 2 holds values that are not finite (NaN or infinity)"
        assert texts == [
            f"repetition 2, slice 0: a readout is left out: {told}",
            "repetition 2, slice 0: 14 of 16 lines came",
        ]

    @pytest.mark.parametrize("fault", ["not a number", "too many samples", "a space that is not there"])
    def test_the_first_of_a_stream_is_refused(self, fault):
        with pytest.raises(InvalidFrame):
            run([FAULTS[fault](one) for one in stream([0])])

    def test_noise_before_it_does_not_make_it_good(self):
        noise = [one for one in simulated().acquisitions if one.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
        spoilt = [*noise, *map(counter("encoding_space_ref", 3), stream([0]))]
        with pytest.raises(InvalidFrame, match="encoding space 3"):
            run(spoilt)

    def test_one_first_readout_of_other_channels_does_not_decide(self):
        readouts = stream(range(3))
        first = with_data(readouts[0], np.ones((COILS + 3, 32)))
        frames, texts = run([first, *readouts[1:]])
        assert_same(frames, given_by_accumulator(readouts[1:]))
        assert len(texts) == 1

    def test_three_dimensions_are_refused_in_words(self):
        scan = parsed()
        geometry = replace(scan.encodings[0].geometry, encoded_matrix=(32, LINES, 4))
        with pytest.raises(InvalidFrame, match=r"32 x 16 x 4.*2-D slices"):
            run(stream([0]), scan=replace(scan, encodings=(replace(scan.encodings[0], geometry=geometry),)))


def most_late(order):
    """How many frames followed one another at most that were older than one before them."""
    newest, late, most = -1, 0, 0
    for r in order:
        newest, late = max(newest, r), 0 if r > newest else late + (r < newest)
        most = max(most, late)
    return most


class TestFramesThatAreWrong:
    def test_frames_that_did_not_come_are_named(self):
        frames, texts = run(stream([0, 1, 2, 6, 7, 9]))
        assert repetitions(frames) == [0, 1, 2, 6, 7, 9]
        assert texts == ["repetitions 3 to 5 of slice 0 did not come", "repetition 8 of slice 0 did not come"]

    @pytest.mark.parametrize("flags", [LAST[:1], []])
    def test_a_frame_that_came_twice_is_given_once(self, flags):
        readouts = stream(range(4), flags=flags)
        frames, texts = run([*readouts[: 3 * LINES], *readouts[2 * LINES :]])
        assert repetitions(frames) == [0, 1, 2, 3]
        for one, other in zip(frames, given_by_accumulator(readouts), strict=True):
            np.testing.assert_allclose(one.imaging.kspace, other.imaging.kspace, rtol=1e-5)
        assert texts == (["repetition 2, slice 0: what comes again, or after its end, is left out"] if flags else [])

    def test_an_older_frame_is_left_out_and_named(self):
        parts = [stream([r], start=r) for r in range(6)]
        frames, texts = run([one for r in (0, 1, 4, 2, 3, 5) for one in parts[r]])
        assert repetitions(frames) == [0, 1, 4, 5]
        assert texts == [
            "repetitions 2 to 3 of slice 0 did not come",
            *(f"repetition {r}, slice 0: came again, or late, after repetition 4, and is left out" for r in (2, 3)),
        ]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.booleans(), st.booleans())
    def test_an_image_is_never_followed_by_an_older_one(self, order, flagged, stamped):
        assume(stamped or most_late(order) <= 3)
        parts = [stream([r], range(6), start=r, flags=LAST[:1] if flagged else ()) for r in range(10)]
        for part in () if stamped else parts:
            for one in part:
                one.acquisition_time_stamp = 0
        frames, _ = run([one for r in order for one in parts[r]])
        given_ = repetitions(frames)
        counted = [r for r in given_ if r > 0]
        assert counted == sorted(set(counted))
        assert given_ == sorted(given_)
        assert max(order) in given_

    @pytest.mark.parametrize("order", [[0, 1, 2, 30_000, 3, 4, 5, 6, 7, 8, 9], [500, 501, 502, 0, 1, 2, 3, 4, 5, 6]])
    def test_without_time_stamps_a_lower_count_is_believed_after_three_frames_of_nothing_else(self, order):
        readouts = stream(order)
        for one in readouts:
            one.acquisition_time_stamp = 0
        frames, texts = run(readouts)
        late = [r for r in order if r < max(order) and order.index(r) > order.index(max(order))]
        assert repetitions(frames) == [*order[: order.index(max(order)) + 1], *late[3:]]
        assert any("the count begins anew" in text for text in texts)

    @pytest.mark.parametrize("lost", [1, 3, LINES - 2])
    def test_lines_that_are_missing_are_named_and_the_frame_comes_all_the_same(self, lost):
        readouts = stream(range(5))
        del readouts[3 * LINES - lost : 3 * LINES]
        accumulator, heard, given_ = LiveAccumulator(parsed(), live=Live()), [], []
        with listening(heard.append):
            for one in readouts:
                given_.append((int(one.idx.repetition), repetitions(accumulator.add(one))))
        assert [pair for pair in given_ if pair[1]] == [(0, [0]), (1, [1]), (3, [2]), (3, [3]), (4, [4])]
        assert [event.text for event in heard] == [f"repetition 2, slice 0: {LINES - lost} of {LINES} lines came"]

    def test_a_frame_that_lost_its_end_comes_with_the_second_readout_of_the_next(self):
        readouts = stream(range(2))
        del readouts[LINES - 1]
        accumulator = LiveAccumulator(parsed(), live=Live())
        given_ = [repetitions(accumulator.add(one)) for one in readouts]
        assert given_.index([0]) == LINES - 1 + 1

    def test_fewer_lines_from_now_on_are_not_named_again_and_again(self):
        readouts = [*stream(range(3)), *stream(range(3, 20), range(0, LINES, 2), start=3)]
        frames, texts = run(readouts)
        assert len(frames) == 20
        assert len(texts) <= 2

    def test_repetitions_wrap_around(self):
        order = [65533, 65534, 65535, 0, 1, 2]
        frames, texts = run(stream(order))
        assert repetitions(frames) == order
        assert texts == []
        frames, texts = run(stream([65534, 2]))
        assert repetitions(frames) == [65534, 2]
        assert texts == ["repetitions 65535 to 1 of slice 0 did not come"]

    def test_who_begins_to_count_anew_is_not_left_in_the_dark(self):
        frames, texts = run(stream([500, 501, 0, 1, 2]))
        assert repetitions(frames) == [500, 501, 0, 1, 2]
        assert texts == ["repetition 0, slice 0: the count begins anew after repetition 501"]

    @pytest.mark.parametrize("count", [True, False])
    def test_a_frame_that_there_is_no_room_for_costs_itself(self, count):
        readouts = stream(range(6))
        readouts = readouts if count else uncounted(readouts)
        memory = Memory(2 * LINES * 32 * (COILS * 8 + 4))
        accumulator, heard, frames = LiveAccumulator(parsed(), live=Live(), memory=memory), [], []
        with listening(heard.append):
            for i, one in enumerate(readouts):
                if i == 2 * LINES + 5:
                    memory.take(int(1.6 * LINES * 32 * (COILS * 8 + 4)))
                if i == 3 * LINES:
                    memory.give_back(int(1.6 * LINES * 32 * (COILS * 8 + 4)))
                frames += accumulator.add(one)
        kept = [f for f in frames if len(f.imaging.lines) == LINES]
        assert len(kept) == 5
        lost = [event.text for event in heard if "this frame is lost: the scans that are being received" in event.text]
        assert len(lost) == 1
        accumulator.close()
        memory.take(2 * LINES * 32 * (COILS * 8 + 4))

    def test_memory_that_does_not_suffice_from_the_start_is_told(self):
        with pytest.raises(InvalidFrame, match="try again later"):
            run(stream(range(2)), memory=Memory(1000))


class TestAnything:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 5 * LINES - 1), st.sampled_from(sorted(FAULTS))), max_size=6),
        st.lists(st.integers(0, 5 * LINES - 1), max_size=10),
        st.sampled_from([Live(), Live(window=5, step=2)]),
        st.booleans(),
    )
    def test_the_stream_goes_on_and_every_readout_is_counted_once(self, faults, lost, live, flagged):
        readouts = [copy.deepcopy(one) for one in stream(range(5), flags=LAST[:1] if flagged else ())]
        for at, fault in faults:
            if at > 0:
                readouts[at] = FAULTS[fault](readouts[at])
        readouts = [one for at, one in enumerate(readouts) if at not in lost or at == 0]
        accumulator, frames = LiveAccumulator(parsed(), live=live), []
        for one in [*readouts, *stream([5, 6], start=10)]:
            try:
                frames += accumulator.add(one)
            except InvalidFrame:
                assert not frames
                return
        frames += accumulator.finish()
        assert [frame.key.repetition for frame in frames if frame.key.slice == 0][-1] == 6
        summary = accumulator.summary()
        assert summary.imaging + sum(summary.skipped.values()) == len(readouts) + 2 * LINES
        accumulator.close()

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "line": st.integers(0, 5),
                    "flags": st.lists(st.sampled_from([*LAST, *range(19, 24)]), max_size=2),
                    "encoding_space_ref": st.sampled_from([0] * 6 + [1]),
                    "average": st.integers(0, 1),
                    "slice": st.integers(0, 1),
                    "repetition": st.integers(0, 2),
                    "acquisition_time_stamp": st.sampled_from([0, 1, 2, 3]),
                }
            ),
            max_size=30,
        ),
        st.sampled_from([None, "separate"]),
        st.sampled_from([None, 1, 2]),
    )
    def test_every_readout_is_counted_once_and_every_imaging_readout_is_in_one_frame(self, fields, mode, averages):
        scan = parsed()
        scan = replace(scan, encodings=(replace(scan.encodings[0], calibration_mode=mode, averages=averages),))
        accumulator, frames, refused = LiveAccumulator(scan, live=Live()), [], 0
        for n, values in enumerate(fields):
            (one,) = stream([0], [values["line"]], start=n, flags=values["flags"])
            for name in ("average", "slice", "repetition"):
                setattr(one.idx, name, values[name])
            one.encoding_space_ref = values["encoding_space_ref"]
            one.acquisition_time_stamp = values["acquisition_time_stamp"]
            try:
                frames += accumulator.add(one)
            except InvalidFrame:
                refused += 1
        frames += accumulator.finish()
        summary = accumulator.summary()
        counted = summary.imaging + summary.calibration + summary.noise + sum(summary.skipped.values())
        assert counted + refused == len(fields)
        assert summary.frames == len(frames)
        assert round(sum(frame.average_count * len(frame.imaging.lines) for frame in frames)) == summary.imaging

    def test_memory_does_not_grow_with_the_stream(self):
        """Neither what is remembered nor what buffers hold, over wrap-arounds and faults."""
        memory = Memory(4 * LINES * 32 * (COILS * 8 + 4))
        accumulator = LiveAccumulator(parsed(), live=Live(), memory=memory)
        parts = [stream([0], [0, 5], slice=s) for s in range(2)]

        def sizes():
            return [len(accumulator._slices), *(len(s.told) + len(s._slots) for s in accumulator._slices.values())]

        heard = set()
        for repetition in range(64_000, 67_000):
            for part in parts:
                for one in part:
                    one.idx.repetition = repetition % 65_536
                    accumulator.add(one)
            if repetition % 300 == 100:
                heard.add(tuple(sizes()))
        assert len(heard) == 1
        assert accumulator.summary().frames == 2 * 3_000


def test_readouts_that_wait_to_be_confirmed_count_as_memory():
    size = 32 * (COILS * 8 + 4)
    memory = Memory(2 * LINES * size)
    accumulator = LiveAccumulator(parsed(), live=Live(), memory=memory)
    frames = [frame for one in stream(range(2)) for frame in accumulator.add(one)]
    heard = []
    with listening(heard.append):
        for number in range(1, 200):
            for one in stream([2], lines=[3], set=number):
                frames += accumulator.add(one)
        frames += [frame for one in stream(range(2, 6)) for frame in accumulator.add(one)]
    # One frame may have found no room; then what waited has made some.
    assert repetitions(frames) in ([0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5])
    assert any("left out" in event.text for event in heard)
    assert accumulator.summary().skipped["for want of memory"] > 0
    accumulator.close()
    memory.take(2 * LINES * size)


def test_a_stream_that_begins_with_more_of_them_than_there_is_memory_for_is_refused():
    readouts = [one for number in range(1000) for one in stream([0], lines=[3], set=number)]
    with pytest.raises(InvalidFrame, match="try again later"):
        run(readouts, memory=Memory(1 << 16))


class TestWindow:
    SHOTS = tuple(tuple(range(start, LINES, 4)) for start in (0, 2, 1, 3))

    def interleaved(self, repetitions, start=0, **fields):
        return [
            one for n, r in enumerate(repetitions) for one in stream([r], self.SHOTS[r % 4], start=start + n, **fields)
        ]

    def test_a_frame_is_the_newest_of_each_line_in_the_last_readouts(self):
        readouts = self.interleaved(range(8))
        frames, texts = run(readouts, live=Live(window=8, step=4))
        assert texts == []
        assert repetitions(frames) == list(range(1, 8))
        for frame in frames:
            last = readouts[: 4 * frame.key.repetition + 4][-8:]
            by_line = {one.idx.kspace_encode_step_1: one for one in last}
            assert lines_of(frame) == sorted(by_line)
            expected = np.stack([by_line[line].data for line in sorted(by_line)], 1)
            np.testing.assert_array_equal(frame.imaging.kspace, expected)
            assert frame.average_count == 1.0
            assert frame.reference == bytes(last[-1].getHead())

    def test_lines_that_come_again_are_not_averaged(self):
        readouts = self.interleaved(range(12))
        frames, _ = run(readouts, live=Live(window=32, step=1))
        for frame in frames:
            assert lines_of(frame) == list(range(LINES))
        newest = {one.idx.kspace_encode_step_1: one.data for one in readouts}
        np.testing.assert_array_equal(frames[-1].imaging.kspace, np.stack([newest[n] for n in range(LINES)], 1))

    @pytest.mark.parametrize("step", [None, 1, 3, 10])
    def test_steps_are_counted_in_readouts(self, step):
        readouts = self.interleaved(range(12))
        accumulator = LiveAccumulator(parsed(), live=Live(window=8, step=step))
        given_at = [i for i, one in enumerate(readouts) for _ in accumulator.add(one)]
        assert given_at[0] in (7, 9)
        assert all(at >= 8 for at in given_at[1:])
        # A repetition is believed with its second readout: what is due at the first comes with that.
        assert {b - a for a, b in itertools.pairwise(given_at)} <= {(step or 8) + n for n in (-1, 0, 1)}

    def test_the_first_fully_sampled_frame_comes_by_itself_before_any_window(self):
        readouts = [*stream([0]), *self.interleaved(range(1, 7), start=1)]
        frames, texts = run(readouts, live=Live(window=8, step=4))
        assert lines_of(frames[0]) == list(range(LINES))
        assert_same(frames[:1], given_by_accumulator(stream([0])))
        assert repetitions(frames) == [0, 1, 2, 3, 4, 5, 6]
        assert len(texts) <= 1

    def test_it_may_come_later(self):
        readouts = [*self.interleaved([0, 1, 2]), *stream([3], start=3), *self.interleaved([4, 5], start=4)]
        frames, _ = run(readouts, live=Live(window=8, step=4))
        full = [frame for frame in frames if len(frame.imaging.lines) == LINES]
        assert_same(full, given_by_accumulator(stream([3], start=3)))
        assert repetitions(frames) == sorted(repetitions(frames))

    def test_of_a_stream_that_counts_nothing_the_first_pass_over_all_lines_is_that_frame(self):
        readouts = uncounted(self.interleaved(range(8), flags=()))
        frames, texts = run(readouts, live=Live(window=8, step=4))
        assert [len(frame.imaging.lines) for frame in frames] == [LINES, *[8] * 4]
        assert texts == []

    def test_each_slice_has_its_own(self):
        parts = [self.interleaved(range(6), slice=s) for s in range(2)]
        mixed = [one for pair in zip(*parts, strict=True) for one in pair]
        frames, _ = run(mixed, live=Live(window=8, step=4))
        for s in range(2):
            own, _ = run(parts[s], live=Live(window=8, step=4))
            assert_same([frame for frame in frames if frame.key.slice == s], own)

    def test_no_frame_is_of_readouts_before_and_after_the_slice_moved(self):
        readouts = self.interleaved(range(12))
        for n, one in enumerate(readouts):
            one.position[:] = (0.1 * (n % 3), 0, 5.0 if n >= 20 else 0)
            one.read_dir[:] = (float("nan"), 0, 0)
        accumulator = LiveAccumulator(parsed(), live=Live(window=8, step=4))
        given_at = [(n, frame) for n, one in enumerate(readouts) for frame in accumulator.add(one)]
        lines = {n: lines_of(frame) for n, frame in given_at}
        assert not any(20 <= n < 27 for n in lines)
        assert [n for n in lines if n >= 27]
        for n, frame in given_at:
            held = {one.idx.kspace_encode_step_1: one.data for one in readouts[max(0, n - 7) : n + 1]}
            if n >= 27:
                np.testing.assert_array_equal(frame.imaging.kspace, np.stack([held[at] for at in lines[n]], 1))

    def test_a_slice_that_moves_faster_than_its_window_fills_is_told(self):
        readouts = self.interleaved(range(12))
        for n, one in enumerate(readouts):
            one.position[:] = (0, 0, 5.0 * (n // 4))
        frames, texts = run(readouts, live=Live(window=8, step=4))
        assert len(frames) <= 1
        assert any("its window is filled anew" in text for text in texts)
        assert texts[-1].startswith("slice 0: 4 readouts were missing to the window at the end")

    def test_a_window_larger_than_the_stream_is_told(self):
        frames, texts = run(self.interleaved(range(12)), live=Live(window=1000))
        assert len(frames) <= 1
        assert "missing to the window" in texts[-1]

    def test_what_a_window_holds_is_given_back(self):
        size = 32 * (COILS * 8 + 4)
        memory = Memory((8 + 8 + LINES) * size)
        accumulator = LiveAccumulator(parsed(), live=Live(window=8, step=4), memory=memory)
        for r in range(200):
            for one in self.interleaved([r]):
                accumulator.add(one)
        assert accumulator.summary().frames == 199
        accumulator.close()
        memory.take((8 + 8 + LINES) * size)


def test_what_is_asked_for_decides_who_collects():
    assert isinstance(collector(parsed(), live=None), Accumulator)
    assert isinstance(collector(parsed(), live=Live()), LiveAccumulator)
