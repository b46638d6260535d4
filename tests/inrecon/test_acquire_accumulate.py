import dataclasses
import itertools
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inrecon.acquire import Accumulator, Encoding, Limits, NotCartesian, Scan, parse_header, raw_frames
from inrecon.errors import InvalidFrame
from inrecon.events import Warned, listening
from inrecon.frame import Geometry, Key, Noise
from inrecon.simulate import simulate_scan

REAL_FILE = Path(__file__).parents[2] / ".." / "shared" / "data" / "phantom_14ch_bssfp_R3_noise.h5"

COILS, X, Y = 3, 16, 8
NOT_IMAGING = {
    ismrmrd.ACQ_IS_NAVIGATION_DATA: "navigation",
    ismrmrd.ACQ_IS_PHASECORR_DATA: "phase correction",
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA: "high-priority feedback",
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA: "dummy scan",
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA: "real-time feedback",
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA: "surface coil correction",
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE: "phase stabilisation reference",
    ismrmrd.ACQ_IS_PHASE_STABILIZATION: "phase stabilisation",
}
LAST_FLAGS = [ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT]


def encoding(x=X, y=Y, z=1, **fields):
    fields.setdefault("step_1", Limits(minimum=0, maximum=y - 1, center=y // 2))
    fields.setdefault("step_2", Limits(minimum=0, maximum=z - 1, center=z // 2))
    fov = float(x), float(y), float(z)
    geometry = Geometry(
        encoded_matrix=(x, y, z), encoded_fov_mm=fov, recon_matrix=(x // 2, y, z), recon_fov_mm=(x / 2, *fov[1:])
    )
    return Encoding(geometry=geometry, **fields)


def scan(*args, **fields):
    return Scan(encodings=(encoding(*args, **fields),), protocol_name="test", field_strength_T=3.0)


def random_data(seed, samples=X, coils=COILS):
    parts = np.random.default_rng(seed).standard_normal((2, coils, samples)).astype(np.float32)
    return parts[0] + 1j * parts[1]


def readout(data, line=0, *, flags=(), space=0, center=None, traj=None, **fields):
    acquisition = ismrmrd.Acquisition.from_array(data, traj)
    acquisition.center_sample = data.shape[1] // 2 if center is None else center
    acquisition.encoding_space_ref = space
    acquisition.sample_time_us = fields.pop("dwell", 4.0)
    acquisition.idx.kspace_encode_step_1 = line
    for name in ("discard_pre", "discard_post", "scan_counter"):
        setattr(acquisition, name, fields.pop(name, 0))
    for name, value in fields.items():
        setattr(acquisition.idx, name, value)
    for flag in flags:
        acquisition.setFlag(flag)
    return acquisition


def lines_of_a_frame(lines=range(Y), seed=0, last=(), **fields):
    lines = list(lines)
    return [
        readout(random_data((seed, line)), line, scan_counter=i, flags=last if i == len(lines) - 1 else (), **fields)
        for i, line in enumerate(lines)
    ]


def run(the_scan, acquisitions, **options):
    accumulator = Accumulator(the_scan, **options)
    return [frame for acquisition in acquisitions for frame in accumulator.add(acquisition)] + accumulator.finish()


def only(frames):
    (frame,) = frames
    return frame


def dense(readouts, y=Y, z=1):
    coils, _, samples = readouts.kspace.shape
    grid = np.zeros((coils, z, y, samples), np.complex64)
    grid[:, readouts.lines[:, 0], readouts.lines[:, 1]] = readouts.kspace
    return grid


def assert_same(one, other):
    for name in ("key", "geometry", "protocol", "reference", "sample_time_us", "average_count"):
        assert getattr(one, name) == getattr(other, name), name
    for a, b in ((one.imaging, other.imaging), (one.calibration, other.calibration)):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a.kspace, b.kspace)
            np.testing.assert_array_equal(a.lines, b.lines)
            np.testing.assert_array_equal(a.acquired, b.acquired)


def labelled_scan(labels):
    """A scan that depends on a noise measurement and whose coils have these letters for names, a space for none."""
    named = tuple(letter.strip() for letter in labels)
    return dataclasses.replace(scan(), coil_labels=named, noise_dependencies=("m",))


def kept_noise(coils, *, labels=""):
    colour = random_data(coils, samples=coils, coils=coils).astype(np.complex128)
    covariance = colour @ colour.conj().T
    return Noise(
        covariance=covariance, samples=99, sample_time_us=7.0, relative_bandwidth=0.9, coil_labels=tuple(labels)
    )


def warnings_of(the_scan, acquisitions, **options):
    heard = []
    with listening(heard.append):
        frames = run(the_scan, acquisitions, **options)
    assert all(isinstance(event, Warned) for event in heard)
    return frames, [event.text for event in heard]


class TestPlacement:
    def test_a_full_frame_is_the_grid_it_was_cut_from(self):
        grid = random_data(1, Y * X).reshape(COILS, 1, Y, X)
        frame = only(run(scan(), [readout(grid[:, 0, y], y) for y in range(Y)]))
        np.testing.assert_array_equal(dense(frame.imaging), grid)
        assert frame.imaging.acquired.all()
        assert frame.calibration is None
        assert frame.noise is None
        assert (frame.coils, frame.sample_time_us, frame.average_count) == (COILS, 4.0, 1.0)
        assert frame.protocol.matrix == (Y, X // 2)
        assert (frame.protocol.coils, frame.protocol.acceleration) == (COILS, 1.0)
        assert (frame.protocol.name, frame.protocol.field_strength_T) == ("test", 3.0)

    def test_lines_filled_up_with_zeros_count_as_not_acquired(self):
        filled = [
            readout(random_data(line) if line % 3 == 0 else np.zeros((COILS, X), np.complex64), line)
            for line in range(Y)
        ]
        frames, texts = warnings_of(scan(), filled)
        assert_same(only(frames), only(run(scan(), filled[::3])))
        assert texts == ["readouts whose samples are all zero count as not acquired"]

    @settings(max_examples=30, deadline=None)
    @given(st.sets(st.integers(0, Y - 1), min_size=1).flatmap(lambda lines: st.permutations(sorted(lines))))
    def test_order_does_not_matter(self, lines):
        acquisitions = {line: readout(random_data(line), line, scan_counter=line) for line in lines}
        shuffled = only(run(scan(), [acquisitions[line] for line in lines]))
        assert_same(shuffled, only(run(scan(), [acquisitions[line] for line in sorted(lines)])))
        assert shuffled.protocol.acceleration == Y / len(lines)

    def test_the_headers_center_lands_in_the_middle(self):
        partial = scan(step_1=Limits(minimum=0, maximum=5, center=2))
        frame = only(run(partial, lines_of_a_frame(range(6))))
        np.testing.assert_array_equal(frame.imaging.lines, [(0, Y // 2 - 2 + i) for i in range(6)])

    def test_partitions_are_placed_as_lines_are(self):
        steps = [(0, 0), (2, 1), (3, 4)]
        volume = scan(
            y=6, z=5, step_1=Limits(minimum=0, maximum=5, center=2), step_2=Limits(minimum=0, maximum=3, center=1)
        )
        data = {step: random_data(step) for step in steps}
        frame = only(run(volume, [readout(d, s[1], kspace_encode_step_2=s[0]) for s, d in data.items()]))
        np.testing.assert_array_equal(frame.imaging.lines, [(z - 1 + 2, y - 2 + 3) for z, y in steps])
        np.testing.assert_array_equal(frame.imaging.kspace, np.stack(list(data.values()), 1))
        assert frame.protocol.acceleration == 6 * 5 / 3

    @pytest.mark.parametrize(
        ("acquisition", "reason"),
        [
            (readout(random_data(0), 7), "outside the encoding limits"),
            (readout(random_data(0), 0), "outside the encoding limits"),
            (readout(random_data(0), 6), "outside the encoded matrix"),
            (readout(random_data(0), 3, kspace_encode_step_2=1), "outside the encoded matrix"),
        ],
    )
    def test_lines_outside_are_skipped_counted_and_announced_once(self, acquisition, reason):
        narrow = scan(step_1=Limits(minimum=1, maximum=6, center=2))
        kept = lines_of_a_frame(range(1, 5))
        frames, texts = warnings_of(narrow, [acquisition, *kept, acquisition])
        assert_same(only(frames), only(run(narrow, kept)))
        assert [reason.split()[0] in text for text in texts] == [True]
        accumulator = Accumulator(narrow)
        for a in (acquisition, *kept, acquisition):
            accumulator.add(a)
        assert accumulator.summary().skipped == {reason: 2}

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, X // 2), st.integers(0, X // 2 - 1), st.booleans())
    def test_an_asymmetric_echo_is_the_full_echo_with_its_ends_zeroed(self, before, after, declared):
        """Cut short by the sender, or by discard_pre and discard_post of a full readout: the same."""
        full = random_data(5)
        zeroed = full.copy()
        zeroed[:, :before] = 0
        zeroed[:, X - after :] = 0
        if declared:
            garbage = full.copy()
            garbage[:, :before] = np.nan
            garbage[:, X - after :] = np.inf
            short = readout(garbage, center=X // 2, discard_pre=before, discard_post=after)
        else:
            short = readout(full[:, before : X - after], center=X // 2 - before)
        imaging = only(run(scan(), [short])).imaging
        np.testing.assert_array_equal(imaging.kspace[:, 0], zeroed)
        acquired = (np.arange(X) >= before) & (np.arange(X) < X - after)
        np.testing.assert_array_equal(imaging.acquired[0], acquired)

    @settings(max_examples=60, deadline=None)
    @given(st.integers(3, X - 1), st.integers(1, X - 3), st.integers(0, X - 2))
    def test_a_reversed_readout_is_the_turned_one(self, count, center, pre):
        assume(center <= count - 2)
        assume(pre < min(count, center + X // 2))
        samples = random_data(6, count)
        turned = readout(samples[:, ::-1], center=count - 1 - center, discard_post=pre)
        backwards = readout(samples, center=center, discard_pre=pre, flags=[ismrmrd.ACQ_IS_REVERSE])
        imaging = only(run(scan(), [backwards])).imaging
        expected = only(run(scan(), [turned])).imaging
        np.testing.assert_array_equal(imaging.kspace, expected.kspace)
        np.testing.assert_array_equal(imaging.acquired, expected.acquired)

    @pytest.mark.parametrize("center", [0, X, 65535])
    def test_a_center_sample_nobody_filled_in_is_the_middle(self, center):
        frames, texts = warnings_of(scan(), [readout(random_data(7), line, center=center) for line in range(2)])
        np.testing.assert_array_equal(only(frames).imaging.kspace[:, 0], random_data(7))
        assert [text for text in texts if "center_sample" in text] == texts
        assert len(texts) == 1

    def test_a_half_echo_that_begins_at_the_centre_is_placed_there(self):
        half = random_data(7, X // 2)
        imaging = only(run(scan(), [readout(half, center=0)])).imaging
        np.testing.assert_array_equal(imaging.kspace[:, 0, X // 2 :], half)
        np.testing.assert_array_equal(imaging.acquired[0], np.arange(X) >= X // 2)

    def test_samples_outside_the_encoded_readout_are_left_out_and_announced(self):
        frames, texts = warnings_of(scan(), [readout(random_data(8), center=X // 2 - 3)])
        imaging = only(frames).imaging
        np.testing.assert_array_equal(imaging.kspace[:, 0, 3:], random_data(8)[:, : X - 3])
        assert not imaging.acquired[0, :3].any()
        assert len(texts) == 1
        assert "left out" in texts[0]

    def test_readouts_of_several_lengths_make_one_frame(self):
        imaging = only(run(scan(), [readout(random_data(n, n), n - 6) for n in (6, 8, 10)])).imaging
        np.testing.assert_array_equal(imaging.acquired.sum(1), [6, 8, 10])

    def test_a_trajectory_on_cartesian_readouts_is_ignored(self):
        bare = only(run(scan(), [readout(random_data(9))]))
        traj = only(run(scan(), [readout(random_data(9), traj=np.ones((X, 2), np.float32))]))
        np.testing.assert_array_equal(traj.imaging.kspace, bare.imaging.kspace)


class TestAverages:
    @pytest.mark.parametrize("field", ["average", "segment", "scan_counter"])
    def test_repeats_of_a_line_are_averaged(self, field):
        data = [random_data(i) for i in range(4)]
        acquisitions = [readout(d, 3, **{field: i}) for i, d in enumerate(data)] + [readout(data[0], 5)]
        frame = only(run(scan(), acquisitions))
        np.testing.assert_array_equal(frame.imaging.lines, [(0, 3), (0, 5)])
        np.testing.assert_allclose(frame.imaging.kspace[:, 0], np.mean(data, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(frame.imaging.kspace[:, 1], data[0])
        assert frame.average_count == 2.5

    def test_averages_of_different_lengths_are_averaged_sample_by_sample(self):
        full, short = random_data(1), random_data(2, X - 4)
        imaging = only(run(scan(), [readout(full), readout(short, center=X // 2 - 4)])).imaging
        np.testing.assert_array_equal(imaging.kspace[:, 0, :4], full[:, :4])
        np.testing.assert_allclose(imaging.kspace[:, 0, 4:], (full[:, 4:] + short) / 2, rtol=1e-6)
        assert imaging.acquired.all()

    def test_a_frame_ends_with_its_last_average(self):
        last = [ismrmrd.ACQ_LAST_IN_SLICE]
        accumulator = Accumulator(scan(averages=2))
        for acquisition in lines_of_a_frame(last=last, average=0):
            assert accumulator.add(acquisition) == []
        *early, final = [accumulator.add(a) for a in lines_of_a_frame(last=last, average=1)]
        assert not any(early)
        assert only(final).average_count == 2

    @pytest.mark.parametrize("averages", [2, 3])
    def test_averages_that_the_header_does_not_count_are_known_from_the_first_slice_on(self, averages):
        last = [ismrmrd.ACQ_LAST_IN_SLICE]
        stream = [a for s in range(3) for n in range(averages) for a in lines_of_a_frame(last=last, slice=s, average=n)]
        frames, texts = warnings_of(scan(), stream)
        assert [(f.key.slice, f.average_count) for f in frames] == [(0, 1.0)] * averages + [
            (1, averages),
            (2, averages),
        ]
        assert len(texts) == 1
        assert "averages came after their frame had ended" in texts[0]
        assert "encodingLimits" in texts[0]

    def test_averages_that_end_with_their_last_flag_need_no_header(self):
        counts = {0: 1, 1: 3, 2: 1}
        stream = [
            a
            for s, averages in counts.items()
            for n in range(averages)
            for a in lines_of_a_frame(last=[ismrmrd.ACQ_LAST_IN_SLICE] if n + 1 == averages else (), slice=s, average=n)
        ]
        accumulator = Accumulator(scan())
        frames = [frame for acquisition in stream for frame in accumulator.add(acquisition)]
        assert [f.average_count for f in frames] == [1, 3, 1]


class TestNotImaging:
    @pytest.mark.parametrize("flag", NOT_IMAGING)
    def test_readouts_of_other_purposes_change_nothing_but_the_count(self, flag):
        imaging = lines_of_a_frame()
        other = readout(np.full((COILS + 1, 5), np.nan + 0j), 2, flags=[flag], space=9, repetition=3)
        mixed = [a for pair in zip(imaging, itertools.repeat(other)) for a in pair]
        frames, texts = warnings_of(scan(), mixed)
        assert_same(only(frames), only(run(scan(), imaging)))
        assert len(texts) == 1
        accumulator = Accumulator(scan())
        for acquisition in mixed:
            accumulator.add(acquisition)
        summary = accumulator.summary()
        assert summary.skipped == {NOT_IMAGING[flag]: Y}
        assert (summary.imaging, summary.noise, summary.calibration) == (Y, 0, 0)
        assert f"{Y} {NOT_IMAGING[flag]}" in str(summary)

    @pytest.mark.parametrize("flag", [ismrmrd.ACQ_IS_NOISE_MEASUREMENT, *NOT_IMAGING])
    @pytest.mark.parametrize("last", LAST_FLAGS)
    def test_their_flags_still_end_frames(self, flag, last):
        accumulator = Accumulator(scan())
        for acquisition in lines_of_a_frame():
            accumulator.add(acquisition)
        only(accumulator.add(readout(random_data(0), flags=[flag, last])))
        assert accumulator.finish() == []

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 3))
    def test_noise_readouts_make_a_covariance_and_no_lines(self, lengths, discard):
        noise = [random_data(i, n + discard) for i, n in enumerate(lengths)]
        flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
        acquisitions = [readout(n, 4, flags=flags, dwell=20.0, discard_pre=discard) for n in noise]
        imaging = lines_of_a_frame()
        frame = only(run(scan(), acquisitions + imaging))
        joined = np.concatenate(noise_kept := [n[:, discard:] for n in noise], 1).astype(np.complex128)
        np.testing.assert_allclose(frame.noise.covariance, joined @ joined.conj().T / joined.shape[1], atol=1e-12)
        assert frame.noise.samples == sum(n.shape[1] for n in noise_kept)
        assert (frame.noise.sample_time_us, frame.noise.relative_bandwidth) == (20.0, 0.793)
        assert_same(frame, only(run(scan(), imaging)))

    def test_noise_alone_makes_no_frame_but_is_told(self):
        accumulator = Accumulator(scan())
        assert accumulator.noise is None
        assert accumulator.add(readout(random_data(0), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])) == []
        assert accumulator.finish() == []
        assert accumulator.noise.samples == X
        assert accumulator.summary().noise == 1

    def test_noise_of_other_channels_is_not_used_and_announced(self):
        noise = readout(random_data(0, coils=5), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        frames, texts = warnings_of(scan(), [noise, *lines_of_a_frame()])
        assert only(frames).noise is None
        assert len(texts) == 1
        assert "5 channels" in texts[0]

    def test_kept_noise_is_used_where_the_scan_has_none(self):
        kept = kept_noise(COILS)
        frame = only(run(labelled_scan(""), lines_of_a_frame(), kept_noise=kept))
        np.testing.assert_array_equal(frame.noise.covariance, kept.covariance)
        assert (frame.noise.samples, frame.noise.sample_time_us, frame.noise.relative_bandwidth) == (99, 7.0, 0.9)
        assert_same(frame, only(run(scan(), lines_of_a_frame())))

    def test_noise_readouts_of_the_scan_itself_win(self):
        own = readout(random_data(1), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        with_kept, without = (
            only(run(labelled_scan(""), [own, *lines_of_a_frame()], kept_noise=kept)).noise
            for kept in (kept_noise(COILS), "there is none")
        )
        np.testing.assert_array_equal(with_kept.covariance, without.covariance)
        assert (with_kept.samples, with_kept.sample_time_us) == (without.samples, without.sample_time_us)

    def test_a_noise_measurement_that_is_missing_is_told_where_the_header_names_one(self):
        own = readout(random_data(1), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        for readouts, options, told in (
            (lines_of_a_frame(), {}, ["the noise measurement that was named is not at hand; noise is estimated"]),
            (lines_of_a_frame(), {"kept_noise": "too old"}, ["too old; noise is estimated from the data instead"]),
            ([own, *lines_of_a_frame()], {}, []),
        ):
            _, texts = warnings_of(labelled_scan(""), readouts, **options)
            assert len(texts) == len(told)
            assert all(text.startswith(start) for text, start in zip(texts, told, strict=True))
        assert warnings_of(scan(), lines_of_a_frame(), kept_noise="too old")[1] == []

    def test_own_noise_names_the_coils_of_the_header(self):
        labelled = dataclasses.replace(scan(), coil_labels=("a", "b", "c"))
        accumulator = Accumulator(labelled)
        accumulator.add(readout(random_data(0), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]))
        assert accumulator.noise.coil_labels == ("a", "b", "c")

    @pytest.mark.parametrize(
        ("known", "labels", "order"),
        [
            ("abc", "abc", [0, 1, 2]),
            ("cab", "abc", [1, 2, 0]),
            ("dcab", "abc", [2, 3, 1]),  # the noise scan had a coil more
            ("", "abc", [0, 1, 2]),  # names on one side only, or none: in order
            ("cab", "", [0, 1, 2]),
            ("", "", [0, 1, 2]),
            ("cab", "ab", [0, 1, 2]),  # names that are not as many as channels, or not unique, tell nothing
            ("ca", "abc", [0, 1, 2]),
            ("cab", "aab", [0, 1, 2]),
            ("aac", "abc", [0, 1, 2]),
            ("cab", "a c", [0, 1, 2]),
        ],
    )
    def test_coils_are_matched_by_name_where_both_sides_name_all(self, known, labels, order):
        kept = kept_noise(max(len(known), COILS), labels=known)
        frames, texts = warnings_of(labelled_scan(labels), lines_of_a_frame(), kept_noise=kept)
        assert texts == []
        np.testing.assert_array_equal(only(frames).noise.covariance, kept.covariance[np.ix_(order, order)])

    @pytest.mark.parametrize(
        ("coils", "known", "labels", "told"),
        [
            (3, "abd", "abc", "1 of the scan's 3 coils are not among the 3 of its noise measurement"),
            (4, "efgh", "abc", "3 of the scan's 3 coils are not among the 4"),
            (2, "ab", "abc", "1 of the scan's 3 coils are not among the 2"),
            (4, "", "abc", "the noise measurement has 4 channels, the scan 3, and no coil labels tell"),
            (4, "abcd", "", "the noise measurement has 4 channels, the scan 3, and no coil labels tell"),
            (2, "", "", "the noise measurement has 2 channels, the scan 3"),
        ],
    )
    def test_noise_of_other_coils_is_left_out_and_why_is_told_once(self, coils, known, labels, told):
        two_frames = [*lines_of_a_frame(last=LAST_FLAGS[:1]), *lines_of_a_frame(repetition=1)]
        kept = kept_noise(coils, labels=known)
        frames, texts = warnings_of(labelled_scan(labels), two_frames, kept_noise=kept)
        assert [frame.noise for frame in frames] == [None, None]
        (text,) = texts
        assert text.startswith(told)
        assert text.endswith("noise is estimated from the data instead")

    @pytest.mark.parametrize(("given", "known"), [(0.0, 0.0), (-1.0, 0.0), (np.nan, 0.0), (np.inf, 0.0), (2.5, 2.5)])
    def test_a_senseless_dwell_time_is_unknown(self, given, known):
        assert only(run(scan(), [readout(random_data(0), dwell=given)])).sample_time_us == known


class TestEnds:
    def test_interleaved_slices_end_one_by_one(self):
        last = [ismrmrd.ACQ_LAST_IN_SLICE]
        slices = [lines_of_a_frame(seed=s, last=last, slice=s) for s in range(3)]
        accumulator = Accumulator(scan())
        given = [accumulator.add(a) for together in zip(*slices, strict=True) for a in together]
        assert [len(frames) for frames in given] == [0] * (3 * Y - 3) + [1, 1, 1]
        for s, frame in enumerate(itertools.chain(*given)):
            assert_same(frame, only(run(scan(), slices[s])))
            assert frame.key == Key(slice=s)
        assert accumulator.finish() == []

    @pytest.mark.parametrize("field", ["slice", "contrast", "phase", "repetition", "set"])
    def test_counters_part_frames(self, field):
        frames = run(scan(), [a for i in range(2) for a in lines_of_a_frame(seed=i, **{field: i})])
        assert [f.key for f in frames] == [Key(), Key(**{field: 1})]
        np.testing.assert_array_equal(frames[1].imaging.kspace[:, 0], random_data((1, 0)))

    def test_encoding_spaces_part_frames(self):
        two = Scan(encodings=(encoding(), encoding(x=32, y=4)))
        frames = run(two, [*lines_of_a_frame(), *lines_of_a_frame(range(4), space=1)])
        assert [(f.key.encoding_space, f.geometry.encoded_matrix) for f in frames] == [(0, (X, Y, 1)), (1, (32, 4, 1))]

    def test_last_in_repetition_ends_that_repetition(self):
        accumulator = Accumulator(scan())
        for acquisition in lines_of_a_frame(slice=1) + lines_of_a_frame(range(Y - 1), slice=0):
            assert accumulator.add(acquisition) == []
        frames = accumulator.add(readout(random_data(1), Y - 1, flags=[ismrmrd.ACQ_LAST_IN_REPETITION]))
        assert [f.key.slice for f in frames] == [0, 1]

    def test_last_in_repetition_leaves_later_repetitions_open(self):
        accumulator = Accumulator(scan())
        for acquisition in [*lines_of_a_frame(repetition=5), *lines_of_a_frame(range(Y - 1))]:
            accumulator.add(acquisition)
        frames = accumulator.add(readout(random_data(1), Y - 1, flags=[ismrmrd.ACQ_LAST_IN_REPETITION]))
        assert [f.key.repetition for f in frames] == [0]
        assert [f.key.repetition for f in accumulator.finish()] == [5]

    def test_last_in_measurement_ends_everything(self):
        accumulator = Accumulator(scan())
        for acquisition in [*lines_of_a_frame(repetition=1), *lines_of_a_frame(range(Y - 1), slice=2)]:
            accumulator.add(acquisition)
        frames = accumulator.add(readout(random_data(1), Y - 1, flags=[ismrmrd.ACQ_LAST_IN_MEASUREMENT], slice=2))
        assert [(f.key.slice, f.key.repetition) for f in frames] == [(0, 1), (2, 0)]

    def test_a_later_repetition_ends_the_earlier_ones_at_once(self):
        accumulator = Accumulator(scan())
        for acquisition in lines_of_a_frame():
            assert accumulator.add(acquisition) == []
        first = lines_of_a_frame(seed=1, repetition=1)
        assert only(accumulator.add(first[0])).key.repetition == 0
        for acquisition in first[1:]:
            assert accumulator.add(acquisition) == []
        assert_same(only(accumulator.finish()), only(run(scan(), first)))

    @pytest.mark.parametrize("last", [(), [ismrmrd.ACQ_LAST_IN_SLICE], [ismrmrd.ACQ_LAST_IN_MEASUREMENT]])
    def test_how_a_frame_ends_does_not_change_it(self, last):
        flagged, bare = (only(run(scan(), lines_of_a_frame(last=flags))) for flags in (last, ()))
        assert_same(flagged, bare)

    def test_a_stream_that_counts_nothing_gives_a_frame_for_each_flag_and_says_so_once(self):
        stream = [lines_of_a_frame(range(i % 2, Y, 2), seed=i, last=[ismrmrd.ACQ_LAST_IN_SLICE]) for i in range(4)]
        frames, texts = warnings_of(scan(), itertools.chain(*stream))
        for frame, acquisitions in zip(frames, stream, strict=True):
            assert_same(frame, only(run(scan(), acquisitions)))
        assert len(texts) == 1
        assert "after the end of their frame" in texts[0]

    def test_stragglers_are_not_made_an_image_and_are_announced_and_counted(self):
        complete = lines_of_a_frame(range(Y - 1), last=[ismrmrd.ACQ_LAST_IN_SLICE])
        straggler = readout(random_data(3), Y - 1)
        frames, texts = warnings_of(scan(), [*complete, straggler])
        assert_same(only(frames), only(run(scan(), complete)))
        assert any("1 readouts came after the end of their frame and are left out" in text for text in texts)
        accumulator = Accumulator(scan())
        for acquisition in [*complete, straggler]:
            accumulator.add(acquisition)
        accumulator.finish()
        assert accumulator.summary().skipped == {"after the end of their frame": 1}
        assert accumulator.summary().imaging == Y - 1

    @pytest.mark.parametrize(("late", "kept"), [(Y // 2 - 1, False), (Y // 2, True)])
    def test_half_the_lines_make_a_frame_of_what_came_late(self, late, kept):
        complete = lines_of_a_frame(last=[ismrmrd.ACQ_LAST_IN_SLICE])
        assert len(run(scan(), complete + lines_of_a_frame(range(late)))) == 1 + kept

    @pytest.mark.parametrize("last", LAST_FLAGS)
    def test_a_stream_that_counts_nothing_may_begin_with_a_full_frame(self, last):
        stream = [lines_of_a_frame(range(0, Y, 1 if i == 0 else 4), seed=i, last=[last]) for i in range(6)]
        accumulator = Accumulator(scan())
        frames = [frame for acquisition in itertools.chain(*stream) for frame in accumulator.add(acquisition)]
        assert [len(f.imaging.lines) for f in frames] == [Y, 2, 2, 2, 2, 2]
        assert accumulator.summary().skipped == {}

    @pytest.mark.parametrize("end", [{"repetition": 1}, {"slice": 1, "flags": LAST_FLAGS[1:2]}])
    def test_stragglers_are_left_out_whatever_else_ends_them(self, end):
        complete = lines_of_a_frame(last=[ismrmrd.ACQ_LAST_IN_SLICE])
        accumulator = Accumulator(scan())
        for acquisition in [*complete, readout(random_data(3)), readout(random_data(4), **end)]:
            accumulator.add(acquisition)
        accumulator.finish()
        assert accumulator.summary().skipped == {"after the end of their frame": 1}
        assert accumulator.summary().frames == 2

    def test_what_follows_a_straggler_is_measured_by_it(self):
        complete = lines_of_a_frame(last=[ismrmrd.ACQ_LAST_IN_SLICE])
        end = readout(random_data(4), slice=1, flags=[ismrmrd.ACQ_LAST_IN_REPETITION])
        small = lines_of_a_frame(range(3))
        frames = run(scan(), [*complete, *small, end, *small])
        assert [(f.key.slice, len(f.imaging.lines)) for f in frames] == [(0, Y), (1, 1), (0, 3)]

    @pytest.mark.parametrize("field", ["slice", "contrast", "phase", "set"])
    @pytest.mark.parametrize("averages", [1, 2])
    def test_a_full_frame_without_flags_ends_when_the_counters_change(self, field, averages):
        accumulator = Accumulator(scan(averages=averages, step_1=Limits(minimum=2, maximum=5, center=4)))
        for value in range(3):
            for average, line in itertools.product(range(averages), range(2, 6)):
                given = accumulator.add(readout(random_data(line), line, average=average, **{field: value}))
                at_a_change = value > 0 and (average, line) == (0, 2)
                assert [f.key for f in given] == ([Key(**{field: value - 1})] if at_a_change else [])
                assert all(f.average_count == averages for f in given)
        assert [f.key for f in accumulator.finish()] == [Key(**{field: 2})]

    @pytest.mark.parametrize("averages", [None, 1, 2])
    @pytest.mark.parametrize("shot", [1, 2, 4, Y])
    @pytest.mark.parametrize("lines", [range(Y), range(0, Y, 2)])
    def test_interleaved_frames_without_flags_are_not_cut(self, averages, shot, lines):
        """Slices change with every shot, in all averages, over three repetitions; the order of lines is no help."""
        order = np.random.default_rng(shot).permutation(lines)
        shots = [order[i : i + shot] for i in range(0, len(order), shot)]
        stream = [
            readout(random_data(int(line)), int(line), slice=s, average=n, repetition=r)
            for r, n, part, s in itertools.product(range(3), range(averages or 2), shots, range(3))
            for line in part
        ]
        frames = run(scan(averages=averages), stream)
        keys = [(f.key.repetition, f.key.slice) for f in frames]
        assert keys == list(itertools.product(range(3), range(3)))
        assert {(len(f.imaging.lines), f.average_count) for f in frames} == {(len(lines), averages or 2)}

    def test_an_accelerated_frame_without_flags_ends_with_the_lines_of_an_earlier_repetition(self):
        accumulator, ends = Accumulator(scan()), {}
        for r, s, line in itertools.product(range(3), range(3), range(0, Y, 3)):
            for frame in accumulator.add(readout(random_data(line), line, slice=s, repetition=r)):
                ends[frame.key.repetition, frame.key.slice] = (r, s, line)
        last = [f.key for f in accumulator.finish()]
        assert [ends[0, s] for s in range(3)] == [(1, 0, 0)] * 3
        assert [ends[1, s] for s in range(3)] == [(1, 1, 0), (1, 2, 0), (2, 0, 0)]
        assert [ends[2, s] for s in range(2)] == [(2, 1, 0), (2, 2, 0)]
        assert last == [Key(slice=2, repetition=2)]

    def test_small_frames_between_large_ones_do_not_cut_interleaved_slices(self):
        sizes = [Y, 2, Y]
        stream = [
            readout(random_data(line), line, slice=s, repetition=r)
            for r, size in enumerate(sizes)
            for line, s in itertools.product(range(size), range(2))
        ]
        frames = run(scan(), stream)
        assert [len(f.imaging.lines) for f in frames] == [n for n in sizes for _ in range(2)]

    def test_a_line_measured_once_too_often_does_not_stand_in_for_another(self):
        lines = [0, *range(Y), *range(Y)]
        stream = [readout(random_data(n), n, slice=s) for n, s in itertools.product(lines, range(2))]
        frames = run(scan(averages=2), stream)
        assert [(f.key.slice, f.average_count) for f in frames] == [(s, (2 * Y + 1) / Y) for s in range(2)]

    def test_other_lines_than_those_of_earlier_repetitions_do_not_end_a_frame(self):
        patterns = [range(0, Y, 3), range(1, Y)]
        stream = [
            readout(random_data(n), n, slice=s, repetition=r)
            for r, pattern in enumerate(patterns)
            for n, s in itertools.product(pattern, range(2))
        ]
        frames = run(scan(), stream)
        assert [len(f.imaging.lines) for f in frames] == [3, 3, Y - 1, Y - 1]

    def test_frames_that_flags_end_do_not_cut_later_ones(self):
        stream = []
        for size in (2, Y):
            slices = [lines_of_a_frame(range(size), last=LAST_FLAGS[:1], slice=s) for s in range(2)]
            stream += [a for together in zip(*slices, strict=True) for a in together]
        assert [len(f.imaging.lines) for f in run(scan(), stream)] == [2, 2, Y, Y]

    def test_a_counter_that_wraps_does_not_stop_the_stream(self):
        repetitions = [65534, 65535, 0, 1, 2]
        frames = run(scan(), [a for r in repetitions for a in lines_of_a_frame(last=LAST_FLAGS[:1], repetition=r)])
        assert [f.key.repetition for f in frames] == repetitions

    def test_nothing_gives_nothing(self):
        accumulator = Accumulator(scan())
        assert accumulator.finish() == []
        assert accumulator.summary().frames == 0


class TestReference:
    def test_the_reference_is_the_header_of_the_readout_nearest_the_centre(self):
        acquisitions = lines_of_a_frame([0, 2, 3, 6, 7])
        for acquisition in acquisitions:
            acquisition.position[:] = [acquisition.idx.kspace_encode_step_1, 1, 2]
        frame = only(run(scan(), acquisitions))
        assert frame.reference == bytes(acquisitions[2].getHead())
        head = ismrmrd.AcquisitionHeader.from_buffer_copy(frame.reference)
        assert tuple(head.position) == (3, 1, 2)

    @given(st.permutations(range(3)))
    @settings(max_examples=6, deadline=None)
    def test_of_repeats_it_is_the_first_average(self, order):
        acquisitions = [readout(random_data(i), Y // 2, average=i) for i in range(3)]
        frame = only(run(scan(), [acquisitions[i] for i in order]))
        assert frame.reference == bytes(acquisitions[0].getHead())


class TestCalibration:
    ONLY = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,)
    BOTH = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING,)

    @pytest.mark.parametrize("mode", ["embedded", "interleaved", "other", None])
    def test_embedded_lines_are_lines_of_the_image(self, mode):
        plain = lines_of_a_frame()
        flagged = lines_of_a_frame()
        for line, acquisition in enumerate(flagged):
            acquisition.setFlag((self.ONLY + self.BOTH)[line % 2])
        frame = only(run(scan(calibration_mode=mode), flagged))
        assert frame.calibration is None
        np.testing.assert_array_equal(frame.imaging.kspace, only(run(scan(), plain)).imaging.kspace)

    @pytest.mark.parametrize("mode", ["separate", "external"])
    @pytest.mark.parametrize(
        ("steps", "center"),
        [(range(3, 6), 4), (range(2, 5), 4), (range(3), 1), (range(4), 2), (range(6, 8), 7), (range(8), 4)],
        ids=["about the center", "center at its end", "own count, odd", "own count, even", "away", "all"],
    )
    def test_separate_lines_are_placed_about_their_centre(self, mode, steps, center):
        """`center` is the step that belongs at the centre: the header's (4) if inside the range, else the middle."""
        reference = [readout(random_data((9, s)), s, flags=self.ONLY) for s in steps]
        imaging = lines_of_a_frame(range(0, Y, 2))
        frame = only(run(scan(calibration_mode=mode), reference + imaging))
        np.testing.assert_array_equal(frame.calibration.lines, [(0, s - center + Y // 2) for s in steps])
        np.testing.assert_array_equal(frame.calibration.kspace, np.stack([random_data((9, s)) for s in steps], 1))
        np.testing.assert_array_equal(frame.imaging.kspace, only(run(scan(), imaging)).imaging.kspace)

    def test_separate_partitions_are_placed_about_their_centre(self):
        steps = list(itertools.product(range(3), range(3, 6)))
        reference = [readout(random_data(s), s[1], kspace_encode_step_2=s[0], flags=self.ONLY) for s in steps]
        volume = scan(z=6, calibration_mode="separate", step_2=Limits(minimum=0, maximum=5, center=4))
        frame = only(run(volume, [*reference, readout(random_data(0), 4, kspace_encode_step_2=4)]))
        np.testing.assert_array_equal(frame.calibration.lines, [(s[0] - 1 + 3, s[1]) for s in steps])

    def test_lines_for_both_are_imaging_lines_in_a_separate_scan_too(self):
        frame = only(run(scan(calibration_mode="separate"), lines_of_a_frame(last=self.BOTH)))
        assert len(frame.imaging.lines) == Y
        assert frame.calibration is None

    def test_calibration_alone_makes_no_frame_and_is_announced(self):
        apart = scan(calibration_mode="separate")
        frames, texts = warnings_of(
            apart,
            [readout(random_data(s), s, flags=[*self.ONLY, *LAST_FLAGS]) for s in range(3)],
        )
        assert frames == []
        assert len(texts) == 1
        assert "3 calibration readouts" in texts[0]

    def test_later_frames_use_what_their_slice_has_until_they_bring_their_own(self):
        def reference(seed, **fields):
            return [readout(random_data((seed, s)), s, flags=self.ONLY, **fields) for s in range(3, 6)]

        last = [ismrmrd.ACQ_LAST_IN_SLICE]
        stream = reference(100, slice=0) + reference(200, slice=1)
        for repetition, s in itertools.product(range(4), range(3)):
            if (repetition, s) == (2, 1):
                stream += reference(300, slice=1, repetition=2)
            stream += lines_of_a_frame(last=last, slice=s, repetition=repetition)
        frames = run(scan(calibration_mode="separate"), stream)
        used = {}
        for frame in frames:
            first = None if frame.calibration is None else frame.calibration.kspace[:, 0]
            seeds = [n for n in (100, 200, 300) if first is not None and np.array_equal(first, random_data((n, 3)))]
            used[frame.key.repetition, frame.key.slice] = seeds
        assert {used[r, 0] == [100] for r in range(4)} == {True}
        assert [used[r, 1] for r in range(4)] == [[200], [200], [300], [300]]
        assert [used[r, 2] for r in range(4)] == [[]] * 4

    def test_each_contrast_prefers_its_own(self):
        stream = [readout(random_data(c), 4, flags=self.ONLY, contrast=c) for c in range(3)]
        stream += [a for r in range(2) for c in range(3) for a in lines_of_a_frame(contrast=c, repetition=r)]
        for frame in run(scan(calibration_mode="external"), stream):
            np.testing.assert_array_equal(frame.calibration.kspace[:, 0], random_data(frame.key.contrast))

    def test_a_contrast_without_one_takes_the_latest(self):
        stream = [readout(random_data(c), 4, flags=self.ONLY, contrast=c) for c in range(2)]
        frame = only(run(scan(calibration_mode="external"), stream + lines_of_a_frame(contrast=3)))
        np.testing.assert_array_equal(frame.calibration.kspace[:, 0], random_data(1))

    def test_a_repetition_that_waits_keeps_its_own(self):
        stream = []
        for r in range(3):
            stream += [readout(random_data(r), 4, flags=self.ONLY, repetition=r), *lines_of_a_frame(repetition=r)]
        for frame in run(scan(calibration_mode="separate"), stream):
            np.testing.assert_array_equal(frame.calibration.kspace[:, 0], random_data(frame.key.repetition))

    def test_calibration_may_grow_between_frames(self):
        def reference(steps):
            return [readout(random_data(s), s, flags=self.ONLY) for s in steps]

        stream = [*reference([3, 4]), *lines_of_a_frame(), *reference([5]), *lines_of_a_frame(repetition=1)]
        stream += [*reference([6]), *lines_of_a_frame(repetition=2)]
        frames = run(scan(calibration_mode="separate"), stream)
        assert [len(f.calibration.lines) for f in frames] == [3, 4, 4]

    def test_a_replaced_calibration_is_forgotten(self):
        def repetition(r):
            return [
                *(readout(random_data(s), s, flags=self.ONLY, repetition=r) for s in range(Y)),
                *lines_of_a_frame(last=[ismrmrd.ACQ_LAST_IN_SLICE], repetition=r),
            ]

        room = 4 * Y * X * (COILS * 8 + 4)
        frames = run(scan(calibration_mode="separate"), [a for r in range(12) for a in repetition(r)], limit_bytes=room)
        assert len(frames) == 12

    def reference(self, s=0, last=(), **fields):
        steps = range(3, 6)
        return [
            readout(random_data((9, s, n)), n, flags=[*self.ONLY, *(last if n == 5 else ())], slice=s, **fields)
            for n in steps
        ]

    @pytest.mark.parametrize("mode", ["separate", "external"])
    @pytest.mark.parametrize("last", LAST_FLAGS)
    @pytest.mark.parametrize("flag", LAST_FLAGS[:2])
    def test_a_frame_waits_for_calibration_that_comes_after_it(self, mode, last, flag):
        accumulator = Accumulator(scan(calibration_mode=mode))
        stream = [*lines_of_a_frame(range(0, Y, 2), last=[flag]), *self.reference(last=[last], set=1)]
        *early, final = [accumulator.add(a) for a in stream]
        assert not any(early)
        np.testing.assert_array_equal(only(final).calibration.kspace[:, 0], random_data((9, 0, 3)))
        assert len(only(final).imaging.lines) == Y // 2

    @pytest.mark.parametrize("last", [(), LAST_FLAGS[:1]])
    def test_every_slice_waits_for_its_own(self, last):
        stream = [a for s in range(3) for a in lines_of_a_frame(last=LAST_FLAGS[:1], slice=s)]
        stream += [a for s in range(3) for a in self.reference(s, last=last)]
        frames, texts = warnings_of(scan(calibration_mode="separate"), stream)
        assert [f.key.slice for f in frames] == [0, 1, 2]
        assert texts == []
        for f in frames:
            np.testing.assert_array_equal(f.calibration.kspace[:, 0], random_data((9, f.key.slice, 3)))

    def test_all_slices_of_a_repetition_wait_each_for_its_own(self):
        accumulator = Accumulator(scan(calibration_mode="separate"))
        imaging = [*lines_of_a_frame(slice=0), *lines_of_a_frame(slice=1, last=LAST_FLAGS[1:2])]
        calibration = [a for s in range(2) for a in self.reference(s, last=LAST_FLAGS[:1], set=1)]
        given = [[f.key.slice for f in accumulator.add(a)] for a in imaging + calibration]
        assert given == [[]] * (2 * Y + 2) + [[0], [], [], [1]]

    def test_a_full_frame_without_flags_waits_too(self):
        accumulator = Accumulator(scan(calibration_mode="separate", averages=1))
        stream = [a for s in range(2) for a in lines_of_a_frame(slice=s)]
        assert [frame for a in stream + self.reference() for frame in accumulator.add(a)] == []
        assert [f.calibration is None for f in accumulator.finish()] == [False, True]

    @pytest.mark.parametrize(
        "end",
        [{"repetition": 1}, {}, {"slice": 1, "flags": LAST_FLAGS[2:]}],
        ids=["repetition", "frame", "measurement"],
    )
    def test_calibration_that_never_comes_is_waited_for_once(self, end):
        accumulator = Accumulator(scan(calibration_mode="separate"))
        for acquisition in lines_of_a_frame(last=LAST_FLAGS[:1]):
            assert accumulator.add(acquisition) == []
        frame, *_ = accumulator.add(readout(random_data(0), **end))
        assert (frame.key, len(frame.imaging.lines), frame.calibration) == (Key(), Y, None)
        later = [accumulator.add(a) for a in lines_of_a_frame(last=LAST_FLAGS[:1], repetition=2)]
        assert [f.key.repetition for f in later[-1]][-1] == 2

    def test_calibration_that_comes_too_late_is_announced_with_the_reason(self):
        stream = [*lines_of_a_frame(last=LAST_FLAGS[2:]), *self.reference()]
        frames, texts = warnings_of(scan(calibration_mode="separate"), stream)
        assert only(frames).calibration is None
        assert ["3 calibration readouts are not used: they came after the images" in text for text in texts] == [True]

    def test_calibration_lines_outside_the_matrix_are_left_out_and_announced(self):
        stream = [readout(random_data(s), s, flags=self.ONLY) for s in range(20)] + lines_of_a_frame()
        frames, texts = warnings_of(scan(calibration_mode="separate"), stream)
        np.testing.assert_array_equal(only(frames).calibration.lines[:, 1], np.arange(4 - 4, 8))
        assert len(texts) == 1
        assert "12 calibration lines outside" in texts[0]


class TestRefusals:
    @pytest.mark.parametrize(
        ("acquisition", "match"),
        [
            (readout(np.zeros((COILS, 0), np.complex64)), "3 channels and 0 samples"),
            (readout(np.zeros((0, X), np.complex64)), "0 channels and 16 samples"),
            (readout(random_data(0, X + 1)), r"17 samples .* encoded matrix of 16"),
            (readout(random_data(0, coils=COILS - 1), 1), "2 channels in a scan of 3"),
            (readout(random_data(0), space=1), "encoding space 1; the header describes 1"),
            (readout(np.full((COILS, X), np.nan + 0j)), "not finite"),
            (readout(np.full((COILS, X), complex(0, np.inf))), "not finite"),
            (readout(random_data(0), discard_pre=10, discard_post=6), "leave nothing of a readout of 16"),
            (readout(random_data(0), discard_pre=65535, discard_post=65535), "leave nothing"),
            (readout(np.zeros((COILS, 0), np.complex64), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), "0 samples"),
            (readout(random_data(0) * np.nan, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), "not finite"),
            (readout(random_data(0, coils=2), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), "2 channels after some of 3"),
        ],
    )
    def test_bad_readouts_are_refused_with_the_reason_and_leave_the_frame_alone(self, acquisition, match):
        noise = readout(random_data(1), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        accumulator = Accumulator(scan())
        for good in [noise, *lines_of_a_frame()]:
            accumulator.add(good)
        before = accumulator.summary()
        with pytest.raises(InvalidFrame, match=match):
            accumulator.add(acquisition)
        assert accumulator.summary() == before
        assert_same(only(accumulator.finish()), only(run(scan(), lines_of_a_frame())))
        assert accumulator.noise.samples == X

    def test_readouts_of_another_trajectory_are_refused_by_its_name(self):
        mixed = Scan(encodings=(NotCartesian(trajectory="spiral"), encoding()))
        assert len(only(run(mixed, lines_of_a_frame(space=1))).imaging.lines) == Y
        with pytest.raises(InvalidFrame, match=r"encoding space 0 of trajectory 'spiral'.*'cartesian' only"):
            Accumulator(mixed).add(readout(random_data(0), space=0))

    def test_a_bad_first_readout_of_a_repetition_does_not_cost_the_one_before(self):
        accumulator = Accumulator(scan())
        for good in lines_of_a_frame():
            accumulator.add(good)
        with pytest.raises(InvalidFrame):
            accumulator.add(readout(random_data(0) * np.nan, repetition=1))
        assert len(accumulator.finish()[0].imaging.lines) == Y

    def test_a_frame_too_large_is_refused_by_its_first_readout(self):
        with pytest.raises(InvalidFrame, match=r"60000 x 60000 x 1 samples and 1 channels takes 26.8 GiB.*8 GiB"):
            Accumulator(scan(60000, 60000)).add(readout(random_data(0, 4, coils=1), center=2))

    def test_open_frames_share_one_bound_and_ended_ones_free_theirs(self):
        room = 4 * Y * X * (COILS * 8 + 4)
        last = [ismrmrd.ACQ_LAST_IN_SLICE]
        ended = [a for s in range(20) for a in lines_of_a_frame(slice=s, last=last)]
        assert len(run(scan(), ended, limit_bytes=room)) == 20
        waiting = [a for s in range(5) for a in lines_of_a_frame(slice=s)]
        with pytest.raises(InvalidFrame, match="LAST_IN_SLICE"):
            run(scan(), waiting, limit_bytes=room)


FLAGS = [*LAST_FLAGS, *NOT_IMAGING, *range(19, 23)]
ANY_READOUT = st.fixed_dictionaries(
    {
        "line": st.integers(0, Y + 1),
        "flags": st.lists(st.sampled_from(FLAGS), max_size=2),
        "space": st.sampled_from([0, 0, 0, 1, 2]),
        "center": st.integers(0, X + 2),
        "kspace_encode_step_2": st.integers(0, 3),
        "discard_pre": st.integers(0, 3),
        "average": st.integers(0, 1),
        "slice": st.integers(0, 1),
        "repetition": st.integers(0, 2),
    }
)


@settings(max_examples=120, deadline=None)
@given(st.lists(ANY_READOUT, max_size=25), st.sampled_from([None, "separate"]), st.sampled_from([None, 1, 2]))
def test_every_readout_is_counted_once_and_every_imaging_readout_is_in_one_frame(fields, mode, averages):
    the_scan = Scan(encodings=(encoding(calibration_mode=mode, averages=averages), encoding(y=6, z=3)))
    accumulator, frames, refused = Accumulator(the_scan), [], 0
    for i, options in enumerate(fields):
        try:
            frames += accumulator.add(readout(random_data(i), scan_counter=i, **options))
        except InvalidFrame:
            refused += 1
    frames += accumulator.finish()
    summary = accumulator.summary()
    counted = summary.imaging + summary.calibration + summary.noise + sum(summary.skipped.values())
    assert counted + refused == len(fields)
    assert summary.frames == len(frames)
    assert round(sum(f.average_count * len(f.imaging.lines) for f in frames)) == summary.imaging


def test_a_whole_scan_gives_the_frames_that_flags_end_and_those_that_its_end_does():
    simulated = simulate_scan(shape=(16, 16), coils=2, acceleration=2, acs=8, repetitions=2)
    found = raw_frames(simulated.header, simulated.acquisitions[:-1])  # the last readout carries the last flag
    expected = run(parse_header(simulated.header), simulated.acquisitions[:-1])
    assert [frame.key.repetition for frame in found] == [0, 1]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.fixture(scope="module")
def recorded():
    if not REAL_FILE.exists():
        pytest.skip(f"{REAL_FILE.name} is not here")
    with ismrmrd.File(REAL_FILE, "r") as file:
        return parse_header(file["dataset"].header.toXML().encode()), list(file["dataset"].acquisitions)


class TestScannerFile:
    def test_a_partial_fourier_scan_with_embedded_reference_lines_and_noise(self, recorded):
        the_scan, acquisitions = recorded
        frames, texts = warnings_of(the_scan, acquisitions)
        frame = only(frames)
        assert texts == []
        assert frame.imaging.kspace.shape == (14, 68, 384)
        assert frame.imaging.acquired.all()
        assert frame.imaging.lines[:, 1].tolist() == [a.idx.kspace_encode_step_1 + 18 for a in acquisitions[1:]]
        assert ismrmrd.AcquisitionHeader.from_buffer_copy(frame.reference).idx.kspace_encode_step_1 == 54
        row = frame.imaging.lines[:, 1].tolist().index(72)
        center = next(a for a in acquisitions[1:] if a.idx.kspace_encode_step_1 == 54)
        np.testing.assert_array_equal(frame.imaging.kspace[:, row], center.data)
        assert frame.noise.covariance.shape == (14, 14)
        assert (frame.noise.samples, frame.noise.sample_time_us) == (384, 20.0)
        assert frame.sample_time_us == pytest.approx(2.4)
        assert frame.protocol.matrix == (144, 192)
        assert frame.protocol.acceleration == pytest.approx(144 / 68)

    def test_the_echo_lies_at_the_middle_of_the_encoded_matrix(self, recorded):
        the_scan, acquisitions = recorded
        energy = np.abs(only(run(the_scan, acquisitions)).imaging.kspace).sum(0)
        row, column = np.unravel_index(energy.argmax(), energy.shape)
        lines = only(run(the_scan, acquisitions)).imaging.lines
        assert abs(lines[row, 1] - 72) <= 1
        assert abs(column - 192) <= 1
