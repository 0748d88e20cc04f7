"""Conjugate gradients: the solution, its certificate, and that each member of a batch stops by itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from bilevel_gym.numerics import conjugate_gradient, matvec


def symmetric(eigenvalues, seed):
    """A [n, n] matrix with these eigenvalues, and a right-hand side [n]."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    return torch.as_tensor(basis * np.asarray(eigenvalues) @ basis.T), torch.as_tensor(rng.standard_normal(len(eigenvalues)))


def batch(*spectra):
    """Matrices [B, n, n] and right-hand sides [B, n]."""
    matrices, rights = zip(*(symmetric(spectrum, seed) for seed, spectrum in enumerate(spectra)), strict=True)
    return torch.stack(matrices), torch.stack(rights)


def true_residual(matrix, right, found, damping=0.0):
    """‖b − (A + δI)v‖ from its definition."""
    return (right - matvec(matrix, found.solution) - damping * found.solution).norm(dim=-1)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_solves_each_system_of_a_batch(damping):
    """n steps solve n unknowns: a wrong step or a direction that is not conjugate needs many more, a forgotten δ solves another system."""
    matrix, right = batch([1.0, 2.0, 3.0, 5.0, 8.0], [0.1, 0.2, 4.0, 9.0, 30.0])
    found = conjugate_gradient(partial(matvec, matrix), right, iterations=5, tolerance=1e-9, damping=damping)
    expected = torch.linalg.solve(matrix + damping * torch.eye(5, dtype=right.dtype), right)
    torch.testing.assert_close(found.solution, expected, rtol=1e-8, atol=1e-8)
    assert (found.residual <= 1e-9 * right.norm(dim=-1)).all()
    assert (found.iterations == 5).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_stops_at_the_limit_with_the_true_residual(steps):
    """An unfinished solve must say how far it is: the reported residual is that of the definition, damping included."""
    matrix, right = batch([1.0, 2.0, 3.0, 5.0, 8.0], [0.1, 0.2, 4.0, 9.0, 30.0])
    found = conjugate_gradient(partial(matvec, matrix), right, iterations=steps, tolerance=0.0, damping=0.2)
    torch.testing.assert_close(found.residual, true_residual(matrix, right, found, 0.2), rtol=1e-10, atol=0.0)
    assert (found.residual > 1e-3).all()
    assert (found.iterations == steps).all()


def test_members_stop_by_themselves():
    """A solved member stays as it is, to the bit, while others go on: its 0/0 must reach nobody."""
    spectra = [[2.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 4.0, 4.0, 4.0, 4.0], [1.0] * 6]
    matrix, right = batch(*spectra)
    right[3] = 0.0
    found = conjugate_gradient(partial(matvec, matrix), right, iterations=20, tolerance=1e-10)
    assert found.iterations.tolist() == [1, 6, 2, 0]
    assert found.curvature[3] == torch.inf
    for i in range(4):
        alone = conjugate_gradient(partial(matvec, matrix[i]), right[i], iterations=20, tolerance=1e-10)
        torch.testing.assert_close(found.solution[i], alone.solution, rtol=1e-12, atol=1e-12)
        assert found.iterations[i] == alone.iterations
    once = conjugate_gradient(partial(matvec, matrix), right, iterations=1, tolerance=1e-10)
    assert torch.equal(found.solution[0], once.solution[0])


def test_tolerance_is_relative():
    """Scaling b must not change the number of steps."""
    matrix, right = symmetric(np.linspace(1.0, 50.0, 30), 0)
    counts = {
        int(conjugate_gradient(partial(matvec, matrix), c * right, iterations=99, tolerance=1e-6).iterations) for c in (1e-6, 1.0, 1e6)
    }
    assert len(counts) == 1
    assert 5 < counts.pop() < 30


def test_a_warm_start_is_used():
    """From the solution no step is taken, from near it fewer; with damping it must be the damped system's residual."""
    matrix, right = symmetric(np.linspace(1.0, 50.0, 30), 0)
    solve = partial(conjugate_gradient, partial(matvec, matrix), right, iterations=99, tolerance=1e-8, damping=0.5)
    cold = solve()
    again = solve(initial=cold.solution)
    assert again.iterations == 0
    assert torch.equal(again.solution, cold.solution)
    near = solve(initial=cold.solution + 1e-6 * right)
    assert 0 < near.iterations < cold.iterations
    torch.testing.assert_close(near.solution, cold.solution, rtol=1e-6, atol=1e-8)


def test_negative_curvature_stops_that_member_alone():
    """An indefinite system must not be walked out of: it keeps what it had, says so, and leaves its neighbour alone."""
    matrix, right = batch([-4.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [-1.0] * 4)
    found = conjugate_gradient(partial(matvec, matrix), right, iterations=9, tolerance=1e-10)
    assert found.curvature[0] < 0.0
    assert found.iterations[0] < 4
    torch.testing.assert_close(found.residual, true_residual(matrix, right, found), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.solution[1], torch.linalg.solve(matrix[1], right[1]), rtol=1e-8, atol=1e-8)
    assert 1.0 <= found.curvature[1] < 4.0
    assert found.iterations[2] == 0
    assert found.curvature[2] == pytest.approx(-1.0)
    assert torch.equal(found.solution[2], torch.zeros(4, dtype=right.dtype))


def test_damping_makes_an_indefinite_system_solvable_and_is_not_in_the_curvature():
    """The curvature is that of A: a Hessian's negative eigenvalue must show although the damped system has none."""
    matrix, right = symmetric([-0.5, 1.0, 2.0, 3.0], 0)
    found = conjugate_gradient(partial(matvec, matrix), right, iterations=4, tolerance=1e-12, damping=0.6)
    torch.testing.assert_close(
        found.solution, torch.linalg.solve(matrix + 0.6 * torch.eye(4, dtype=right.dtype), right), rtol=1e-7, atol=1e-7
    )
    assert -0.5 <= found.curvature < 0.0


def test_a_broken_product_is_not_followed():
    """A NaN from the product ends the solve with what was finite, and shows in the curvature."""
    found = conjugate_gradient(lambda p: p * torch.nan, torch.ones(3), iterations=5, tolerance=1e-6)
    assert torch.equal(found.solution, torch.zeros(3))
    assert found.curvature.isnan()
