"""LoRA: the identity at the start, the two-step product in numpy, blocks of their own, and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block, Stack
from jaxlm.layers.lora import LoRA
from jaxlm.layers.mlp import SwiGLU
from jaxlm.mixers import RGLRU, Attention
from jaxlm.models import LM
from jaxlm.module import ConfigError, Spec, count, init

MODEL = LM(13, 16, Stack(Block(Attention(16, heads=4, kv_heads=2), SwiGLU(16)), 3))
LORA = LoRA(MODEL, rank=2, scale=0.5)


def drawn(module, seed):
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda p: r.normal(size=p.shape).astype(np.float32), init(module, jax.random.key(0)))


def test_starts_as_the_model_itself():
    params, adapters = drawn(MODEL, 0), init(LORA, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, LORA.merge(params, adapters), params)
    own = adapters["body"]["block0"]["mixer"]
    assert set(adapters) == {"body"} and set(own) == {"query", "key", "value", "out"}
    assert own["query"]["down"].shape == (3, 16, 2) and own["query"]["up"].shape == (3, 2, 4, 4)
    assert own["out"]["down"].shape == (3, 4, 4, 2) and own["out"]["up"].shape == (3, 2, 16)
    assert count(LORA) == 3 * 2 * (2 * (16 + 16) + 2 * (16 + 8))
    down = np.asarray(own["query"]["down"])
    assert 0.15 < down.std() < 0.35 and not np.array_equal(down[0], down[1])  # 1 / sqrt(16); each layer draws


def test_adds_the_product_of_its_maps():
    params, adapters = drawn(MODEL, 0), drawn(LORA, 1)
    merged = LORA.merge(params, adapters)
    p, a, m = (t["body"]["block0"]["mixer"] for t in (params, adapters, merged))
    x, z = np.random.default_rng(2).normal(size=(2, 16))
    for layer in range(3):
        q = {n: np.float64(w[layer]) for n, w in a["query"].items()}
        want = np.einsum("d,dhk->hk", x, p["query"][layer]) + 0.5 * np.einsum("r,rhk->hk", x @ q["down"], q["up"])
        close(np.einsum("d,dhk->hk", x, m["query"][layer]), want)
        o, heads = {n: np.float64(w[layer]) for n, w in a["out"].items()}, z.reshape(4, 4)
        low = np.einsum("hk,hkr->r", heads, o["down"])
        close(
            np.einsum("hk,hkd->d", heads, m["out"][layer]),
            np.einsum("hk,hkd->d", heads, p["out"][layer]) + 0.5 * low @ o["up"],
        )
    same = jax.tree.map(np.array_equal, {**merged, "body": 0}, {**params, "body": 0})
    assert all(jax.tree.leaves(same))
    np.testing.assert_array_equal(merged["body"]["block0"]["mlp"]["down"], params["body"]["block0"]["mlp"]["down"])


def test_blocks_of_a_block_diagonal_matrix_have_adapters_of_their_own():
    lora = LoRA(RGLRU(16), rank=1, names=("gates",))
    adapters, params = drawn(lora, 0), drawn(RGLRU(16), 1)
    assert adapters["gates"]["down"].shape == (2, 8, 1) and adapters["gates"]["up"].shape == (2, 1, 2, 8)
    want = np.einsum("hir,hrgo->higo", adapters["gates"]["down"], adapters["gates"]["up"]) + params["gates"]
    close(lora.merge(params, adapters)["gates"], want)


def test_every_adapter_learns_and_the_model_stays():
    params, adapters = drawn(MODEL, 0), drawn(LORA, 1)
    tokens = jnp.arange(7, dtype=jnp.int32)[None]
    grads = jax.jit(jax.grad(lambda a: jnp.sum(MODEL.apply(LORA.merge(params, a), tokens)[0] ** 2)))(adapters)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))


def test_fields():
    with pytest.raises(ConfigError, match="rank = 0"):
        LoRA(MODEL, rank=0)
    with pytest.raises(ConfigError, match="names = "):
        LoRA(MODEL, names=("embed",))  # a table: it contracts nothing

    class Apart(type(MODEL)):
        def params(self):
            spec = Spec((2, 3, 4), ("heads", "embed", "head"), lambda key, spec: None, ins=("heads", "head"))
            return {"query": spec}

    with pytest.raises(ConfigError, match="side by side"):
        LoRA(Apart(13, 16, MODEL.body))
