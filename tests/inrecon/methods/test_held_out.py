"""What is held out of a frame to judge fits: stretches of readouts, drawn alike for all, never from the centre."""

import dataclasses

import pytest
import torch

from inrecon.frame import Frame
from inrecon.methods import hold_out
from inrecon.methods.held_out import certainty
from inrecon.operators import CartesianSense
from inrecon.testing import random_complex, smooth_maps, smooth_object

ROWS, COLUMNS = 72, 40
NEAR = 2
STRETCH = 16


def frame_of(mask: torch.Tensor) -> Frame:
    maps = smooth_maps(2, *mask.shape)
    operator = CartesianSense(maps.csm, mask)
    return Frame(kspace=operator.forward(smooth_object(*mask.shape)), operator=operator, maps=maps, noise_level=None)


def lines(rows: int = ROWS) -> torch.Tensor:
    """Every third line and twelve in the centre."""
    mask = torch.zeros(rows, COLUMNS, dtype=torch.bool)
    mask[::3] = True
    mask[rows // 2 - 6 : rows // 2 + 6] = True
    return mask


def partial_echo() -> torch.Tensor:
    """Lines that begin late in the readout."""
    mask = lines()
    mask[:, :11] = False
    return mask


def partial_fourier() -> torch.Tensor:
    mask = lines()
    mask[:20] = False
    return mask


def points() -> torch.Tensor:
    """Two phase encodings: points at random, and all of the centre."""
    mask = torch.rand(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[ROWS // 2 - 6 : ROWS // 2 + 6, COLUMNS // 2 - 6 : COLUMNS // 2 + 6] = True
    return mask


LINES = [lines(), lines(ROWS - 1), partial_echo(), partial_fourier()]
LINE_SCANS = pytest.mark.parametrize("mask", LINES, ids=["lines", "odd", "partial echo", "partial Fourier"])
SCANS = pytest.mark.parametrize(
    "mask", [*LINES, points()], ids=["lines", "odd", "partial echo", "partial Fourier", "points"]
)
FRACTIONS = pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])


def held_out(mask: torch.Tensor, fraction: float, *, seed: int = 0) -> torch.Tensor:
    """The samples held out of a scan of `mask`, centred ``(rows, columns)``."""
    frame = hold_out(frame_of(mask), fraction, seed=seed)
    assert frame.held_out is not None
    taken = frame.operator.mask & ~frame.training.operator.mask
    assert taken.sum() == frame.held_out.sum()
    return taken


def near_the_centre(size: int) -> torch.Tensor:
    return (torch.arange(size) - size // 2).abs() <= NEAR


@SCANS
@FRACTIONS
def test_what_is_held_out_was_acquired(mask: torch.Tensor, fraction: float) -> None:
    assert not (held_out(mask, fraction) & ~mask).any()


def stretches(marked: torch.Tensor) -> torch.Tensor:
    """Marks ``(lines, columns)`` of the frame's own order as ``(lines, stretches, 16)``."""
    assert COLUMNS % STRETCH == 8
    return torch.nn.functional.pad(marked, (0, 8)).unflatten(1, (-1, STRETCH))


@LINE_SCANS
@FRACTIONS
def test_of_a_scan_of_lines_whole_stretches_are_held_out(mask: torch.Tensor, fraction: float) -> None:
    frame = hold_out(frame_of(mask), fraction, seed=0)
    assert frame.held_out is not None
    taken, sampled = stretches(frame.held_out), stretches(frame.operator.sampled)
    assert torch.equal(taken, taken.any(2, keepdim=True) & sampled)
    # The centre is in the first stretch and, by its negative frequencies, in the last, of five lines.
    candidates = int(sampled.any(2).sum()) - 5 * 2
    if sampled.all(0)[1:-1].all():
        assert int(taken.any(2).sum()) == max(min(16, int(0.2 * candidates)), round(fraction * candidates))


@SCANS
@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_the_centre_is_held_out(mask: torch.Tensor, seed: int) -> None:
    taken, near = held_out(mask, 0.4, seed=seed), near_the_centre(len(mask))
    assert not taken[near][:, near_the_centre(COLUMNS)].any()


def test_that_part_of_the_points_is_held_out_one_by_one() -> None:
    mask = points()
    centre = near_the_centre(ROWS)[:, None] & near_the_centre(COLUMNS)
    taken = held_out(mask, 0.1)
    assert int(taken.sum()) == round(0.1 * int((mask & ~centre).sum()))
    assert (taken.sum(1) < mask.sum(1)).all()


@LINE_SCANS
def test_every_line_may_be_held_out(mask: torch.Tensor) -> None:
    ever = torch.stack([held_out(mask, 0.3, seed=seed) for seed in range(30)]).any(0)
    assert torch.equal(ever.any(1), mask.any(1))


def test_every_point_outside_the_centre_may_be_held_out() -> None:
    ever = torch.stack([held_out(points(), 0.4, seed=seed) for seed in range(30)]).any(0)
    assert torch.equal(ever, points() & ~(near_the_centre(ROWS)[:, None] & near_the_centre(COLUMNS)))


@SCANS
def test_the_seed_alone_says_which(mask: torch.Tensor) -> None:
    first = held_out(mask, 0.3, seed=4)
    torch.rand(5)
    assert torch.equal(held_out(mask, 0.3, seed=4), first)
    assert not torch.equal(held_out(mask, 0.3, seed=5), first)


@SCANS
def test_values_stay_and_do_not_matter(mask: torch.Tensor) -> None:
    frame = frame_of(mask)
    judging = hold_out(frame, 0.3, seed=0)
    other = hold_out(dataclasses.replace(frame, kspace=-3 * frame.kspace), 0.3, seed=0)
    assert judging.kspace is frame.kspace
    assert judging.operator is frame.operator
    assert judging.held_out is not None
    assert other.held_out is not None
    assert torch.equal(judging.held_out, other.held_out)


@pytest.mark.parametrize(("count", "expected"), [(2, 0), (3, 2), (4, 2)])
def test_of_few_stretches_none_is_held_out(count: int, expected: int) -> None:
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[:count] = True
    mask[ROWS // 2] = True  # its middle stretch alone is no part of the centre
    frame = hold_out(frame_of(mask), 0.05, seed=0)
    found = 0 if frame.held_out is None else int(stretches(frame.held_out).any(2).sum())
    assert found == expected


def test_a_small_scan_that_was_judged_is_no_more() -> None:
    """Nothing is left of what was held out before."""
    frame = frame_of((torch.arange(ROWS) < 2)[:, None].repeat(1, COLUMNS))
    marked = dataclasses.replace(frame, held_out=frame.operator.sampled)
    assert hold_out(marked, 0.05, seed=0).held_out is None


def test_data_of_zeros_judge_nothing() -> None:
    """Though the samples are the same as in any other slice."""
    frame = frame_of(lines())
    dark = hold_out(dataclasses.replace(frame, kspace=0 * frame.kspace, noise_level=1.0), 0.05, seed=0)
    bright = hold_out(frame, 0.05, seed=0)
    assert dark.held_out is not None
    assert bright.held_out is not None
    assert torch.equal(dark.held_out, bright.held_out)
    assert dark.loss(smooth_object(ROWS, COLUMNS)) is None
    assert dark.noise_loss == 0


def judged_in_runs(*runs: tuple[int, int, int]) -> Frame:
    """A frame of which those ``(line, first, end)`` are held out."""
    frame = frame_of(lines())
    held = torch.zeros_like(frame.operator.sampled)
    for line, first, end in runs:
        held[line, first:end] = True
    return dataclasses.replace(frame, held_out=held)


def test_certainty_is_the_t_statistic_of_the_gains_of_runs() -> None:
    """By hand, also for runs that begin or end a line, or follow each other from the end of one line to the next."""
    short = [(line, 5, 6) for line in range(7, 11)]
    frame = judged_in_runs((0, 24, 40), (1, 0, 16), (1, 20, 23), (2, 0, 4), *short)
    worse, better = random_complex(2, 2 * 43, seed=1)
    errors = [(residuals.abs() ** 2).view(2, 43).sum(0) for residuals in (worse, better)]
    runs = torch.tensor([[part.sum() for part in error.split([16, 16, 3, 4, 1, 1, 1, 1])] for error in errors])
    gains = (runs[0] / runs[1]).log()
    expected = gains.mean() / (gains.std() / 8**0.5)
    assert certainty(frame, worse=worse, better=better) == pytest.approx(float(expected), rel=1e-5)
    assert certainty(frame, worse=better, better=worse) == pytest.approx(-float(expected), rel=1e-5)


def test_few_runs_or_none_make_nothing_certain() -> None:
    worse, better = random_complex(2, 2 * 7 * 9, seed=1)
    frame = judged_in_runs(*((line, 4, 13) for line in range(7)))
    assert certainty(frame, worse=worse, better=0.1 * better) == 0
    assert certainty(frame_of(lines()), worse=worse, better=better) == 0
