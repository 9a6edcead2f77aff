"""The dynamics of small networks: Taylor models, tangent kernels, and the closed forms that experiments are held to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm import taps
from jaxlm.analysis.attention_entropy import attention_entropy
from jaxlm.analysis.fixed_points import iterate, newton, radius
from jaxlm.analysis.taylor import sharpest, tangent_kernel, taylor
from jaxlm.errors import ConfigError
from jaxlm.layers.activation import ACTIVATIONS
from jaxlm.module import init
from jaxlm.ops.losses import nats
from jaxlm.theory import attractors, catapult, neuron_alignment, relu_entropy, single_neuron


def example(width=6, inputs=3):
    rng = np.random.default_rng(0)
    start = {"u": jnp.asarray(rng.normal(size=(width, inputs))), "v": jnp.asarray(rng.normal(size=width))}
    return start, jax.tree.map(lambda w: w + 0.7, start), jnp.asarray(rng.normal(size=(4, inputs)))


def test_the_quadratic_model_of_a_relu_network_has_its_first_activations(x64):
    start, w, x = example()
    got = taylor(lambda w: catapult.network(w, x), start, 2)(w)
    on = np.asarray(x @ start["u"].T) > 0
    frozen = (on * np.asarray(x @ w["u"].T)) @ np.asarray(w["v"]) / np.sqrt(6)
    close(got, frozen, jnp.float64)
    linear = taylor(lambda w: catapult.network(w, x), start, 1)(w)
    cross = (on * np.asarray(x @ (w["u"] - start["u"]).T)) @ np.asarray(w["v"] - start["v"]) / np.sqrt(6)
    close(linear, frozen - cross, jnp.float64)


def test_taylor_models_of_a_power(x64):
    cube = lambda w: {"y": w**3}  # noqa: E731
    at, w = jnp.array([1.0, -2.0]), jnp.array([1.5, 0.5])
    want = [at**3, at**3 + 3 * at**2 * (w - at), w**3 - (w - at) ** 3, w**3, w**3]
    for order, y in enumerate(want):
        close(taylor(cube, at, order)(w), {"y": y}, jnp.float64)
    with pytest.raises(ConfigError, match="order = -1"):
        taylor(cube, at, -1)


def test_the_tangent_kernel_by_hand(x64):
    start, _, x = example()
    u, v, x_ = (np.asarray(a) for a in (start["u"], start["v"], x))
    on = (x_ @ u.T > 0).astype(float)
    hidden = on * (x_ @ u.T)
    want = (hidden @ hidden.T + (on * v**2) @ on.T * (x_ @ x_.T)) / 6
    got = tangent_kernel(lambda w: catapult.network(w, x), start)
    close(got, want, jnp.float64)
    close(sharpest(got), np.linalg.eigvalsh(want)[-1], jnp.float64)


def test_separability_by_hand(x64):
    x = np.array([[1.0, 0.0], [-1.0, 0.5], [2.0, 1.0]])
    y = np.array([1.0, -1.0, 1.0])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = min(y[i] * y[j] * unit[i] @ unit[j] for i in range(3) for j in range(3))
    close(neuron_alignment.separability({"x": jnp.asarray(x), "y": jnp.asarray(y)}), want, jnp.float64)


def test_neurons_are_aligned_where_they_are_active_on_their_own_points_alone(x64):
    data = {"x": jnp.array([[1.0, 0.0], [-1.0, 0.1]]), "y": jnp.array([1.0, -1.0])}
    w = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # own, the other's, one of the other's, dead
    seen = neuron_alignment.watch({"w": w, "v": jnp.ones(4)}, jax.random.key(0), data)
    assert float(seen["aligned"]) == 0.5 and float(seen["imbalance"]) == 0


def test_the_surrogate_has_the_gradient_without_the_slope(x64):
    rng = np.random.default_rng(1)
    data = {"x": jnp.asarray(rng.normal(size=(30, 5))), "y": jnp.asarray(rng.normal(size=30))}
    w = jnp.asarray(rng.normal(size=5))
    want = (np.maximum(np.asarray(data["x"] @ w), 0) - np.asarray(data["y"])) @ np.asarray(data["x"]) / 30
    close(jax.grad(single_neuron.surrogate)({"w": w}, data)["w"], want, jnp.float64)


def test_the_closed_form_of_the_spoilt_neuron():
    rng = np.random.default_rng(2)
    z, bad = rng.normal(size=400_000), rng.random(400_000) < 0.1
    y = np.where(bad, 3 * np.maximum(-z, 0), np.maximum(z, 0))
    told = single_neuron.predicted(0.1, 0.5, 40)
    alpha = 0.0
    for k in range(40):
        alpha -= 0.5 * np.mean((np.maximum(alpha * z, 0) - y) * z)
        assert abs(alpha - told["alpha"][k]) < 0.02
    assert abs(np.mean((np.maximum(alpha * z, 0) - y) ** 2) / told["error"][-1] - 1) < 0.02
    errors = [np.mean((np.maximum(a * z, 0) - y) ** 2) for a in (0.85, 0.9, 0.95)]
    assert abs(min(errors) / told["best"] - 1) < 0.02


def test_fixed_points_of_the_logistic_map(x64):
    r = np.array([2.8, 3.4])  # 1 - 1 / r attracts in the first, repels in the second; the slope there is 2 - r

    @jax.jit
    @jax.vmap
    def found(r):
        f = lambda x: r * x * (1 - x)  # noqa: E731
        point = newton(f, jnp.array([0.6]), 6)
        return point, jax.jacfwd(f)(point), iterate(f, point + 1e-3, 40)

    point, slope, walk = found(r)
    close(point[:, 0], 1 - 1 / r, jnp.float64)
    close(radius(slope), abs(2 - r), jnp.float64)
    assert walk.shape == (2, 41, 1)
    close(walk[:, 1:], r[:, None, None] * walk[:, :-1] * (1 - walk[:, :-1]), jnp.float64)
    assert list(abs(walk[:, -1] - point)[:, 0] < 1e-3) == [True, False]
    assert np.isnan(radius(np.array([[np.inf]])))


def test_a_linear_autoencoder_has_one_fixed_point(x64):
    rng, values = np.random.default_rng(3), np.array([0.9, -0.5, 0.2])
    q, b, shift = np.eye(3) + 0.3 * rng.normal(size=(3, 3)), rng.normal(size=(5, 3)), rng.normal(size=(2, 5))
    m = q @ np.diag(values) @ np.linalg.inv(q)
    layers = {"encoder": (m @ np.linalg.pinv(b), shift[0, :3]), "decoder": (b, shift[1])}
    params = {k: [{"w": jnp.asarray(w), "b": jnp.asarray(c)}] for k, (w, c) in layers.items()}
    point = np.linalg.solve(np.eye(3) - m, layers["encoder"][0] @ shift[1] + shift[0, :3])
    x, noise, away = b @ point + shift[1], rng.normal(size=(4, 5)), rng.normal(size=(1, 3))
    s = attractors.Settings(exact=1, short=6, turns=400)
    seen = jax.device_get(jax.jit(lambda *a: attractors.look(*a, s))(params, x[None], noise, away))
    close(seen["point"], point[None], jnp.float64)
    close(radius(seen["jacobian"]), np.array([0.9]), jnp.float64)
    close(radius(seen["pixel"]), np.array([0.9]), jnp.float64)
    found = attractors.judged(seen, np.stack([x, 2 * x]), 1)
    assert found == {k: pytest.approx(0.9) if k == "radius" else 1.0 for k in found}
    assert attractors.judged(seen, np.stack([2 * x, x]), 1)["walks"] == 0
    exact = attractors.checked([seen], away)
    close(exact["told"][0, 6], np.linalg.norm(np.linalg.matrix_power(m, 6) @ away[0]), jnp.float64)
    assert exact["orders"].max() < 1e-10 and exact["walks"].max() < 1e-6


def test_codes_follow_images(x64):
    params = jax.tree.map(lambda w: w.astype(jnp.float64), attractors.start(jax.random.key(0), (5, 7, 3)))
    x = jnp.asarray(np.random.default_rng(4).normal(size=5))

    @jax.jit
    def walks(params, x):
        encode = lambda x: attractors.apply(params["encoder"], x)  # noqa: E731
        images = iterate(lambda x: attractors.again(params, x), x, 4)
        return jax.vmap(encode)(images), iterate(lambda z: attractors.field(params, z), encode(x), 4)

    close(*walks(params, x), jnp.float64)


def test_entropy_of_attention(x64):
    even = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    rng, small = np.random.default_rng(5), 1e-3
    scores = small * rng.normal(size=(4, 4))
    near = np.where(np.tril(np.ones((4, 4))) > 0, np.exp(scores), 0)
    near /= near.sum(-1, keepdims=True)
    entropy, share = jax.jit(attention_entropy)(np.stack([even, np.eye(4), near]))
    most = np.log(np.arange(1, 5))
    close(entropy[:2], np.stack([most, 0 * most]), jnp.float64)
    close(share[0, 1:], np.ones(3), jnp.float64)
    variance = np.array([scores[t, : t + 1].var() for t in range(4)])
    np.testing.assert_allclose(most - entropy[2], variance / 2, atol=10 * small**3)


def test_what_a_line_leaves_of_an_activation(x64):
    x = np.linspace(-12, 12, 2_000_001)  # fine, for the kink
    w = np.exp(-(x**2) / 2)
    w = w / w.sum()
    for kind in relu_entropy.KINDS:
        for s in (0.02, 0.5, 1.5):
            y = np.asarray(ACTIVATIONS[kind](jnp.asarray(s * x)))
            line = (w @ (y * x)) ** 2 / (w @ y**2 - (w @ y) ** 2)
            np.testing.assert_allclose(relu_entropy.unlinear(kind, np.array(s)), 1 - line, atol=1e-10)


def test_the_inside_of_a_decoder_without_norms():
    s = relu_entropy.Settings(width=8, depth=2, heads=2)
    model, rng = relu_entropy.decoder(s, "relu", False, 5), np.random.default_rng(6)
    params, chars = init(model, jax.random.key(0)), rng.integers(5, size=(3, 7)).astype(np.int32)

    @jax.jit
    def both(params, chars):
        inside = taps.capture(lambda x: model.apply(params, x)[0], ("resid", "mlp.in"))
        return relu_entropy.look(model, "relu", params, chars), inside(chars[:, :-1])

    got, (logits, seen) = both(params, chars)
    close(got["paid"], jnp.mean(nats(logits, jnp.asarray(chars[:, 1:]))))
    np.testing.assert_array_equal(seen["mlp.in"][0], seen["resid"][0])  # nothing between the stream and the MLP
    into = np.einsum("lbtd,ldf->lfbt", seen["mlp.in"][0], params["body"]["block0"]["mlp"]["up"]).reshape(2, 32, -1)
    close(got["size"], np.sqrt(into.var(-1).mean(-1)))
    assert got["share"].shape == (2, 2) and (np.asarray(got["share"]) <= 1 + 1e-6).all()
