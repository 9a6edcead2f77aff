"""The FitzHugh-Nagumo neuron: a fast voltage and a slow recovery, integrated with error control."""

from collections.abc import Callable

import numpy as np

from jaxlm.data.errors import DataError

# Dormand and Prince 1980: stages, weights of the fifth order less those of the fourth, and Shampine's quartic between
# two steps, as polynomials in the share of the step.
NODES = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
STAGES = (
    np.array([1 / 5]),
    np.array([3 / 40, 9 / 40]),
    np.array([44 / 45, -56 / 15, 32 / 9]),
    np.array([19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729]),
    np.array([9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656]),
    np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]),
)
ERROR = np.array([-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40])
BETWEEN = np.array(
    [
        [1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432],
        [0, 0, 0, 0],
        [0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799],
        [0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072],
        [0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632],
        [0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844],
        [0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423],
    ]
)
Field = Callable[[np.ndarray], np.ndarray]


def fitzhugh_nagumo(n: int, seed: int = 0, points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Voltages, and the same voltages one step of 0.4 later.

    n        sequences, each with its own initial voltage from U(-1, 1) and no recovery
    points   length of a sequence
    ->       v (n, points, 1), next v (n, points, 1), float32

    v' = v - v^3/3 - w + I,  w' = (v + a - b w) / 50,  with I = 0.5, a = 0.7, b = 0.8.
    Source: Rusch et al. 2022, section 5 and appendix B: 1,000 points, RK45 at its default tolerances.
    """
    if n < 1 or points < 1:
        raise DataError(f"n = {n}, points = {points}: expected at least one sequence of one point")
    first = np.random.Generator(np.random.Philox(seed)).uniform(-1, 1, n)

    def field(y: np.ndarray) -> np.ndarray:
        v, w = y
        return np.stack([v - v**3 / 3 - w + 0.5, (v + 0.7 - 0.8 * w) / 50])

    v = integrate(field, np.stack([first, np.zeros(n)]), 0.4 * np.arange(points + 1))[0].astype(np.float32)
    return v[:, :-1, None], v[:, 1:, None]


def integrate(field: Field, first: np.ndarray, times: np.ndarray, rtol: float = 1e-3, atol: float = 1e-6) -> np.ndarray:
    """Trajectories of y' = field(y) by an adaptive Runge-Kutta method of order 5(4), each with its own steps.

    field    (k, n) -> (k, n)
    first    the state at times[0]     (k, n)
    times    ascending                 (points,)
    ->                                 (k, n, points), between the steps by the method's quartic
    """
    end, n = times[-1], first.shape[1]
    t, y, slope = np.full(n, times[0]), first.astype(float), field(first)
    h, refused, steps = _first_step(field, y, slope, end - times[0], rtol, atol), np.zeros(n, bool), []
    while (running := t < end).any():
        h = np.where(running, np.minimum(h, end - t), h)
        stages = [slope]
        for weights in STAGES:
            at = y + h * np.tensordot(weights, np.stack(stages), 1)
            stages.append(field(at))
        every = np.stack(stages)
        scale = atol + rtol * np.maximum(np.abs(y), np.abs(at))
        error = _size(h * np.tensordot(ERROR, every, 1) / scale)
        good = (error < 1) & running
        factor = 0.9 * np.maximum(error, 1e-300) ** -0.2
        grown = h * np.minimum(np.where(refused, 1, 10), factor)
        steps.append((np.where(good, h, 0), t, y, np.tensordot(BETWEEN.T, every, 1)))
        # A last step lands on the end exactly: t + (end - t) may miss it by a rounding.
        t, y, slope = (
            np.where(good, np.where(h == end - t, end, t + h), t),
            *np.where(good, (at, stages[-1]), (y, slope)),
        )
        h, refused = np.where(good, grown, np.where(running, h * np.maximum(0.2, factor), h)), running & ~good
    return _sample([np.stack(s) for s in zip(*steps, strict=True)], first, times)


def _first_step(field: Field, y: np.ndarray, slope: np.ndarray, span: float, rtol: float, atol: float) -> np.ndarray:
    """A step whose error should be small (Hairer, Norsett and Wanner 1993, section II.4).   (n,)"""
    scale = atol + rtol * np.abs(y)
    d0, d1 = _size(y / scale), _size(slope / scale)
    small = np.minimum(np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / np.maximum(d1, 1e-300)), span)
    d2 = _size((field(y + small * slope) - slope) / scale) / small
    most = np.maximum(d1, d2)
    bound = np.where(most <= 1e-15, np.maximum(1e-6, 1e-3 * small), (0.01 / np.maximum(most, 1e-300)) ** 0.2)
    return np.minimum(np.minimum(100 * small, bound), span)


def _size(a: np.ndarray) -> np.ndarray:
    """Root mean square over the components.   (k, n) -> (n,)"""
    return np.sqrt(np.mean(a**2, axis=0))


def _sample(steps: list[np.ndarray], first: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The quartics of the accepted steps at the given times."""
    h, t, y, quartic = steps  # (s, n), (s, n), (s, k, n), (s, 4, k, n)
    out = np.empty((*first.shape, len(times)))
    for i in range(first.shape[1]):
        taken = np.flatnonzero(h[:, i])
        place = taken[np.searchsorted(t[taken, i], times, side="left").clip(1) - 1]
        share = (times - t[place, i]) / h[place, i]
        powers = np.cumprod(np.broadcast_to(share, (4, len(times))), axis=0)
        out[:, i] = y[place, :, i].T + h[place, i] * np.einsum("pt,tpk->kt", powers, quartic[place, :, :, i])
    return out
