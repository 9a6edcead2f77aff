"""The augmented linear attention against its recurrence in numpy, its limit, and no leak from the future."""

import numpy as np
import pytest
from test_linear_attention import Row as LinearRow
from tolerance import close
from twin import agree, apply, packed, weights

from jaxlm.mixers.conv_linear_attention import ConvLinearAttention
from jaxlm.mixers.linear_attention import LinearAttention
from jaxlm.module import ConfigError

MIXER = ConvLinearAttention(16, taps=3)


class Row(LinearRow):
    """Linear attention, and W_O Σ_i w_i v_{t-i} besides."""

    def reset(self):
        super().reset()
        self.state["past"] = np.zeros((2, *self.p["value"].shape[1:]))

    def token(self, x):
        past, v = self.state["past"], np.einsum("d,dhk->hk", x, self.p["value"])
        y = super().token(x)
        seen = np.concatenate([past, v[None]])
        self.state["past"] = seen[1:]
        near = sum(w * value for w, value in zip(self.p["conv"], seen, strict=True))  # the last tap is of the present
        return y + np.einsum("hv,hvd->d", near, self.p["out"])


def test_equals_the_recurrence():
    agree(MIXER, Row)


def test_no_later_token_moves_an_earlier_output_by_a_bit():
    params, (x, _) = weights(MIXER), packed(MIXER)
    y = np.asarray(apply(MIXER, params, x)[0])
    for t in range(1, x.shape[1]):
        changed = np.asarray(apply(MIXER, params, x.at[:, t:].multiply(-3.0))[0])
        np.testing.assert_array_equal(changed[:, :t], y[:, :t])
        assert np.abs(changed[:, t:] - y[:, t:]).max() > 0.1


def test_without_taps_it_is_linear_attention():
    params, (x, starts) = weights(MIXER), packed(MIXER)
    none = {**params, "conv": 0 * params["conv"]}
    plain = {n: p for n, p in params.items() if n != "conv"}
    close(apply(MIXER, none, x, None, starts)[0], apply(LinearAttention(16), plain, x, None, starts)[0])


def test_fields():
    assert MIXER.state(3)["past"].shape == (3, 2, 2, 8) and MIXER.params()["conv"].shape == (3, 2, 8)
    with pytest.raises(ConfigError, match="taps = 0"):
        ConvLinearAttention(16, taps=0)
