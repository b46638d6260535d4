"""UnrollINR: the suite, the solvers against each other, the implicit gradient, and what a fit promises."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from inrecon.errors import FitDiverged
from inrecon.events import Event, FitFinished, FitProgressed, listening
from inrecon.frame import Frame
from inrecon.methods import CGSense, UnrollINR, build, consistency
from inrecon.methods.consistency import ColumnSolver, DataConsistency, ImplicitSolve, IterativeSolver
from inrecon.methods.linear import data_consistent
from inrecon.methods.method import InvalidHyperparameter
from inrecon.methods.unroll_inr import total_variation
from inrecon.operators import CartesianSense
from inrecon.testing import MethodConformance, random_complex, relative_error, simulated_frame

QUICK = UnrollINR(iterations=40, levels=8, log2_table_size=12, base_resolution=4, width=16)


def scattered_frame() -> Frame:
    """A frame of single samples in place of whole lines."""
    frame, truth = simulated_frame()
    mask = torch.rand(32, 24, generator=torch.Generator().manual_seed(5)) < 0.5
    operator = CartesianSense(frame.maps.csm, mask)
    return dataclasses.replace(frame, operator=operator, kspace=operator.forward(truth))


def judging(frame: Frame, fraction: float = 0.3) -> Frame:
    """`frame` with a part of its samples held out."""
    drawn = torch.rand(frame.kspace.shape[1:], generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(frame, held_out=frame.operator.sampled & (drawn < fraction))


def spoiled(frame: Frame) -> Frame:
    """`frame` with other values where it is held out."""
    assert frame.held_out is not None
    return dataclasses.replace(frame, kspace=frame.kspace + 0.5 * frame.held_out)


EACH_SAMPLING = pytest.mark.parametrize(
    "make", [lambda: simulated_frame()[0], scattered_frame], ids=["lines", "scattered"]
)


class TestUnrollINR(MethodConformance):
    method = QUICK


class TestUnrollINRWithDiner(MethodConformance):
    method = dataclasses.replace(QUICK, encoder="diner", features_per_level=4, phase_width=0.0)


def dense(operator: CartesianSense, weight: float) -> torch.Tensor:
    """A^H A + weight I as a matrix ``(pixels, pixels)``, complex128."""
    units = torch.eye(operator.csm[0].numel(), dtype=torch.complex64).view(-1, *operator.domain_shape)
    matrix = operator.gram(units).flatten(1).T.to(torch.complex128)
    return matrix + weight * torch.eye(len(matrix))


@pytest.mark.parametrize("rows", [12, 13])
def test_the_columns_solve_what_the_dense_matrix_solves(rows: int) -> None:
    operator = simulated_frame(rows, 10)[0].operator
    right_hand_side = random_complex(rows, 10, seed=1)
    expected = torch.linalg.solve(dense(operator, 0.05), right_hand_side.flatten().to(torch.complex128))
    solution = ColumnSolver(operator, weight=0.05)(right_hand_side)
    torch.testing.assert_close(solution.flatten(), expected.to(torch.complex64), rtol=1e-3, atol=1e-3)


def test_conjugate_gradients_and_columns_are_one_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, _ = simulated_frame()
    exact = DataConsistency(frame, weight=0.03, iterations=1)
    monkeypatch.setattr(consistency, "MOST_INVERSE_ENTRIES", 0)
    iterative = DataConsistency(frame, weight=0.03, iterations=200)
    assert isinstance(exact.solve, ColumnSolver)
    assert isinstance(iterative.solve, IterativeSolver)
    for prior in (random_complex(32, 24, seed=1), random_complex(32, 24, seed=2)):
        torch.testing.assert_close(iterative(prior), exact(prior), rtol=1e-3, atol=1e-3)


def test_conjugate_gradients_go_on_from_the_last_solution() -> None:
    operator = scattered_frame().operator
    right_hand_side = random_complex(32, 24, seed=1)
    solve = IterativeSolver(operator.gram, 0.03, 5)

    def residual() -> float:
        image = solve(right_hand_side)
        return float((operator.gram(image) + 0.03 * image - right_hand_side).norm())

    assert residual() > 2 * residual() > 4 * residual()


@EACH_SAMPLING
def test_imputation_ends_at_the_image_of_the_training_samples(make: Callable[[], Frame]) -> None:
    frame, prior = judging(make()), random_complex(32, 24, seed=1)
    expected = data_consistent(frame.training, prior=prior, weights=[0.2], iterations=200)[0]
    consistent = DataConsistency(frame, weight=0.2, iterations=200)
    for _ in range(60):
        image = consistent(prior)
        consistent.impute(frame.operator.forward(image))
    assert relative_error(image, expected) < 1e-3
    assert relative_error(data_consistent(frame, prior=prior, weights=[0.2], iterations=200)[0], expected) > 1e-2


@EACH_SAMPLING
def test_without_a_prior_it_is_where_it_starts(make: Callable[[], Frame]) -> None:
    consistent = DataConsistency(judging(make()), weight=0.2, iterations=200)
    assert relative_error(consistent(torch.zeros_like(consistent.start)), consistent.start) < 1e-3


def test_the_implicit_gradient_is_that_through_a_dense_solve_and_of_finite_differences() -> None:
    frame, _ = simulated_frame(6, 5)
    matrix = dense(frame.operator, 0.3)
    right_hand_side = random_complex(30, seed=1).to(torch.complex128)
    prior = random_complex(30, seed=2).to(torch.complex128).requires_grad_()
    target = random_complex(30, seed=3).to(torch.complex128)

    def solve(b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(matrix, b)

    def implicit(z: torch.Tensor) -> torch.Tensor:
        return ImplicitSolve.apply(z, right_hand_side, 0.3, solve, solve)

    def through(z: torch.Tensor) -> torch.Tensor:
        return solve(right_hand_side + 0.3 * z)

    def gradient(consistent: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad((consistent(prior) - target).abs().sum(), prior)[0]

    # The matrix is that of a single-precision operator: Hermitian to 1e-7 only.
    torch.testing.assert_close(gradient(implicit), gradient(through), rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(lambda z: (implicit(z) - target).abs().sum(), prior, atol=1e-5)


def test_total_variation_of_a_step_is_its_height_times_its_length() -> None:
    image = torch.zeros(6, 5, dtype=torch.complex64)
    assert total_variation(image, smoothing=0.1) == 0
    image[2:] = 3j
    torch.testing.assert_close(total_variation(image), torch.tensor(3.0 * 5))
    torch.testing.assert_close(total_variation(image.T), torch.tensor(3.0 * 5))


def test_total_variation_is_a_seminorm_blind_to_phase() -> None:
    image, other = random_complex(7, 6, seed=1), random_complex(7, 6, seed=2)
    torch.testing.assert_close(total_variation(-2j * image + 5), 2 * total_variation(image))
    assert total_variation(image + other) <= total_variation(image) + total_variation(other)
    assert total_variation(image, smoothing=0.5) < total_variation(image)


@EACH_SAMPLING
def test_held_out_samples_have_no_part_in_the_fit_but_in_the_image(make: Callable[[], Frame]) -> None:
    frame, method = judging(make()), dataclasses.replace(QUICK, iterations=10)
    first, second = method.fit(frame), method.fit(spoiled(frame))
    assert first.trial is not None
    assert second.trial is not None
    assert torch.equal(first.trial, second.trial)
    assert first.losses == second.losses
    assert first.validation_loss != pytest.approx(second.validation_loss, rel=1e-2)
    assert relative_error(first.image, second.image) > 1e-2


@EACH_SAMPLING
def test_the_fit_is_that_of_the_training_samples_alone(make: Callable[[], Frame]) -> None:
    frame = judging(make(), 0.05)
    # Without dropout: both fits draw the same samples, but only one of them imputes.
    method = dataclasses.replace(QUICK, iterations=60, sample_dropout=0.0)
    result, alone = method.fit(frame), method.fit(frame.training)
    assert result.losses[-1] == pytest.approx(alone.losses[-1], rel=0.2)
    assert result.trial is not None
    assert relative_error(result.trial, alone.image) < 0.01


def test_nothing_held_out_is_nothing_to_judge_by() -> None:
    result = QUICK.fit(simulated_frame()[0])
    assert result.validation_loss is None
    assert result.trial is None


def test_patience_without_held_out_samples_has_no_effect() -> None:
    frame, _ = simulated_frame()
    assert torch.equal(dataclasses.replace(QUICK, patience=3).fit(frame).image, QUICK.fit(frame).image)


def test_a_smooth_phase_helps_a_short_fit() -> None:
    frame, truth = simulated_frame(48, 48, noise=3e-3)
    method = dataclasses.replace(QUICK, base_resolution=8, phase_width=8.0)
    plain = dataclasses.replace(method, phase_width=0.0)
    assert relative_error(method.fit(frame).image, truth) < relative_error(plain.fit(frame).image, truth)


def test_single_samples_are_reconstructed_as_well() -> None:
    frame = scattered_frame()
    _, truth = simulated_frame()
    assert relative_error(QUICK.fit(frame).image, truth) < 0.2


def test_it_beats_cg_sense() -> None:
    frame, truth = simulated_frame(48, 48, noise=3e-3)
    method = dataclasses.replace(QUICK, iterations=100, base_resolution=8)
    assert relative_error(method.fit(frame).image, truth) < 0.8 * relative_error(CGSense().fit(frame).image, truth)


def test_stopping_by_held_out_samples_gives_the_best_image_of_the_run() -> None:
    frame = judging(simulated_frame(noise=2e-2)[0], 0.2)
    method = dataclasses.replace(
        QUICK, iterations=600, patience=2, tv_weight=1e-3, tv_final_fraction=1.0, image_averaging=0.0
    )
    result = method.fit(frame)
    assert result.stopped_by == "held-out samples"
    assert result.iterations < 600
    last = dataclasses.replace(method, patience=0, iterations=result.iterations).fit(frame)
    assert result.validation_loss is not None
    assert last.validation_loss is not None
    assert result.validation_loss < last.validation_loss


def test_a_fit_that_diverges_says_so() -> None:
    frame, _ = simulated_frame()
    with pytest.raises(FitDiverged, match="not finite after 10 iterations"):
        QUICK.fit(dataclasses.replace(frame, kspace=frame.kspace * float("inf")))


def test_a_fit_that_ends_worse_than_it_began_says_so() -> None:
    frame, _ = simulated_frame()
    method = dataclasses.replace(QUICK, iterations=2, learning_rate=50.0)
    with pytest.raises(FitDiverged, match="at first"):
        method.fit(frame)


def test_another_seed_is_another_fit() -> None:
    frame, _ = simulated_frame()
    assert not torch.equal(QUICK.fit(frame).image, dataclasses.replace(QUICK, seed=1).fit(frame).image)


def test_the_fit_is_announced() -> None:
    frame, _ = simulated_frame()
    heard: list[Event] = []
    with listening(heard.append):
        result = dataclasses.replace(QUICK, iterations=25).fit(judging(frame))
    (finished,) = (event for event in heard if isinstance(event, FitFinished))
    assert (finished.method, finished.iterations) == ("unroll_inr", 25)
    assert finished.validation_loss == result.validation_loss
    assert [event.iteration for event in heard if isinstance(event, FitProgressed)] == [10, 20, 25]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"held_out": 0.1}, "no field 'held_out'"),
        ({"encoder": "hash"}, "unroll_inr.encoder must be one of .*hash_grid.*, not 'hash'"),
        ({"dc_weight": 0.0}, r"unroll_inr.dc_weight must lie in 0.0001 \.\. "),
        ({"tv_final_fraction": 2.0}, r"must lie in 0.001 \.\. 1"),
    ],
)
def test_a_wrong_hyperparameter_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=message):
        build("unroll_inr", values)
