"""minLSTM: an LSTM whose gates do not read the past and are made to sum to 1."""

import jax

from jaxlm.mixers.mingru import Averager
from jaxlm.typing import Array


class MinLSTM(Averager):
    """Minimal LSTM, its gates normalised to be independent of time (Feng et al. 2024, 2410.01201, section 3.2).

    f_t, i_t = σ(W x_t + b)     c_t = W_h x_t + b_h      h_t = f_t / (f_t + i_t) h_{t-1} + i_t / (f_t + i_t) c_t

    Shapes, fields and weights as `MinGRU`; the gate axis (3) of the maps is ordered f, i, c.
    """

    paper = "Feng et al. 2024"
    gates = 2

    def weigh(self, *gates: Array) -> tuple[Array, Array]:
        # f / (f + i) = σ(log f - log i): no quotient, so nothing is lost where both gates are shut.
        odds = jax.nn.log_sigmoid(gates[0]) - jax.nn.log_sigmoid(gates[1])
        return jax.nn.sigmoid(odds), jax.nn.sigmoid(-odds)
