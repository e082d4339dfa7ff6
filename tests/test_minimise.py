"""L-BFGS: where it ends, and why."""

import math

import pytest
import torch
from scipy.optimize import rosen, rosen_der
from torch.linalg import LinAlgError

from pyro_armed.minimise import curvature_scale, minimise

F64 = torch.float64
START = torch.tensor([-1.2, 1.0, 0.5], dtype=F64)


def rosenbrock(x):
    return float(rosen(x.numpy())), torch.as_tensor(rosen_der(x.numpy()))


def test_the_minimum_of_a_bent_valley():
    found = minimise(rosenbrock, START, iterations=200, slope=1e-6)
    assert found.settled
    assert found.slope <= 1e-6
    torch.testing.assert_close(found.x, torch.ones(3, dtype=F64), rtol=0, atol=1e-5)
    assert found.trace[-1] == pytest.approx(found.value, abs=1e-10)
    assert rosenbrock(found.x)[0] == found.value


def test_too_few_iterations_are_not_settled():
    found = minimise(rosenbrock, START, iterations=5, slope=1e-6)
    assert not found.settled
    assert len(found.trace) == 5
    assert found.value < rosenbrock(START)[0]


def test_it_ends_where_a_window_gains_too_little():
    whole = minimise(rosenbrock, START, iterations=200, slope=1e-9).trace
    found = minimise(rosenbrock, START, iterations=200, slope=0.0, gain=0.05, window=3)
    count = len(found.trace)
    values = [rosenbrock(START)[0], *whole]
    assert found.settled
    assert values[count - 3] - values[count] <= 0.05
    assert all(values[k - 3] - values[k] > 0.05 for k in range(3, count))


def test_a_minimum_to_begin_with_is_left_alone():
    found = minimise(rosenbrock, torch.ones(3, dtype=F64), iterations=5, slope=1e-6)
    assert found.settled
    assert found.trace == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, LinAlgError])
def test_it_turns_back_from_where_there_is_no_value(bad):
    """x - log x, of which nothing is known below zero."""

    def function(x):
        if bool((x <= 0).any()):
            if bad is LinAlgError:
                raise LinAlgError("not positive definite")
            return bad, x * math.nan
        return float((x - x.log()).sum()), 1 - 1 / x

    found = minimise(function, torch.tensor([5.0, 0.01], dtype=F64), iterations=100, slope=1e-6)
    torch.testing.assert_close(found.x, torch.ones(2, dtype=F64), rtol=0, atol=1e-5)


def test_curvature_becomes_one():
    random = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    hessian = random @ random.mT + torch.eye(4, dtype=F64)
    scale = curvature_scale(hessian, least=0.1)
    torch.testing.assert_close(scale.mT @ hessian @ scale, torch.eye(4, dtype=F64))
    flat = curvature_scale(torch.diag(torch.tensor([-9.0, 1e-8, torch.nan], dtype=F64)))
    torch.testing.assert_close((flat @ flat.mT).diagonal(), torch.tensor([1 / 9, 2.0, 2.0], dtype=F64))
