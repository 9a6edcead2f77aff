"""Few-shot learning: the split by character, episodes of both protocols, Conv-4, and the model that binds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import close

from jaxlm.blocks import Block
from jaxlm.data import DataError
from jaxlm.data.folder import DataFolder
from jaxlm.data.omniglot import digits, omniglot, quarter_turns
from jaxlm.errors import ConfigError, ShapeError
from jaxlm.layers.mlp import MLP
from jaxlm.layers.norm import LayerNorm
from jaxlm.mixers.srwm import SRWM, FakeSR
from jaxlm.models.episodes import delayed, instance, synchronous, two_tasks
from jaxlm.models.few_shot import Conv4, FewShot, jittered
from jaxlm.module import init

WAYS, CLASSES, ITEMS = 5, 9, 8


@pytest.fixture
def folder(tmp_path):
    """Drawings whose pixels tell their class and their place in it, in a shuffled file."""
    files = (("omniglot_background_small_28", "character", 12, 4), ("mnist_5k", "labels", 10, 6))
    for name, label, classes, items in files:
        at = tmp_path / ("omniglot" if label == "character" else "mnist")
        at.mkdir()
        order = np.random.default_rng(0).permutation(classes * items)
        images = np.zeros((classes * items, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = order // items, order % items
        np.savez(at / f"{name}.npz", images=images, **{label: order // items})
    return DataFolder(tmp_path)


def test_no_character_is_in_two_splits(folder):
    split = omniglot(folder, valid=2, test=3)
    assert {name: bank.shape for name, bank in split.items()} == {
        "train": (7, 4, 28, 28),
        "valid": (2, 4, 28, 28),
        "test": (3, 4, 28, 28),
    }
    kinds = [set(bank[:, :, 0, 0].ravel()) for bank in split.values()]
    assert set.union(*kinds) == set(range(12)) and sum(map(len, kinds)) == 12
    for bank in split.values():  # every class whole, and of one character
        assert (bank[:, :, 0, 0] == bank[:, :1, 0, 0]).all()
        assert (np.sort(bank[:, :, 0, 1]) == np.arange(4)).all()
    np.testing.assert_array_equal(omniglot(folder, 2, 3)["train"], split["train"])
    assert (omniglot(folder, 2, 3, seed=1)["test"][:, 0, 0, 0] != split["test"][:, 0, 0, 0]).any()
    with pytest.raises(DataError, match="valid \\+ test = 12"):
        omniglot(folder, 6, 6)


def test_no_digit_image_is_in_both_splits(folder):
    split = digits(folder, test=2)
    assert split["train"].shape == (10, 4, 28, 28) and split["test"].shape == (10, 2, 28, 28)
    both = np.concatenate([split["train"], split["test"]], axis=1)
    assert (both[:, :, 0, 0] == np.arange(10)[:, None]).all()
    assert (np.sort(both[:, :, 0, 1]) == np.arange(6)).all()


def test_quarter_turns_are_further_classes():
    bank = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 5)).astype(np.uint8)
    turned = quarter_turns(bank)
    assert turned.shape == (12, 2, 5, 5)
    for turns in range(4):
        np.testing.assert_array_equal(turned[3 * turns + 1, 1], np.rot90(bank[1, 1], turns))


def test_the_real_drawings(data_folder):
    split = omniglot(data_folder)
    assert [split[name].shape[:2] for name in ("train", "valid", "test")] == [(182, 20), (20, 20), (40, 20)]
    assert digits(data_folder)["train"].shape == (10, 400, 28, 28)


def bank(classes=CLASSES, items=ITEMS, base=0):
    """Item i of class c is the vector (base + c, i)."""
    c, i = np.meshgrid(base + np.arange(classes), np.arange(items), indexing="ij")
    return jnp.asarray(np.stack([c, i], axis=-1))


def drawn(episodes):
    e = jax.tree.map(np.asarray, episodes)
    return e, e.images[..., 0], e.images[..., 1]


def consistent(kinds, items, targets):
    """Within an episode a label is a class and a class a label, and no image comes twice."""
    for row in range(len(targets)):
        pairs = set(zip(kinds[row].tolist(), targets[row].tolist(), strict=True))
        assert len(pairs) == len({k for k, _ in pairs}) == len({t for _, t in pairs}) == WAYS
        assert len(set(zip(kinds[row].tolist(), items[row].tolist(), strict=True))) == targets.shape[1]


def test_synchronous_episodes():
    e, kinds, items = drawn(jax.jit(lambda k: synchronous(k, bank(), 200, WAYS, 2, 3))(jax.random.key(0)))
    assert e.targets.shape == (200, 13)
    consistent(kinds, items, e.targets)
    support = e.targets[:, :10]
    np.testing.assert_array_equal(e.slots[:, :10], support)
    assert (e.slots[:, 10:] == -1).all()
    assert (np.sort(support, axis=1) == np.repeat(np.arange(WAYS), 2)).all()
    for seen in (np.bincount(e.targets[:, 10]), np.bincount(support[:, 0]), np.bincount(kinds[:, 0])):
        assert (seen > 0.4 * seen.mean()).all()  # any class and label may come at any place
    assert set(np.unique(items)) == set(range(ITEMS))


def test_delayed_episodes():
    e, kinds, items = drawn(jax.jit(lambda k: delayed(k, bank(), 100, WAYS, 3))(jax.random.key(0)))
    consistent(kinds, items, e.targets)
    assert (e.slots[:, 0] == -1).all()
    np.testing.assert_array_equal(e.slots[:, 1:], e.targets[:, :-1])
    assert (np.sort(e.targets, axis=1) == np.repeat(np.arange(WAYS), 3)).all()
    number = np.asarray(instance(jnp.asarray(e.targets), WAYS))
    want = [[list(row[:t]).count(row[t]) for t in range(15)] for row in e.targets]
    np.testing.assert_array_equal(number, want)


def test_two_tasks_follow_each_other_in_either_order():
    e, kinds, items = drawn(jax.jit(lambda k: two_tasks(k, bank(), bank(base=100), 40, WAYS, 2))(jax.random.key(0)))
    other = kinds >= 100
    assert (other == other[:, :1] ^ (np.arange(20) >= 10)[None]).all()  # one cut, in the middle
    assert 8 < other[:, 0].sum() < 32
    for half in (slice(0, 10), slice(10, 20)):
        consistent(kinds[:, half], items[:, half], e.targets[:, half])
    assert (e.slots[:, 0] == -1).all()
    np.testing.assert_array_equal(e.slots[:, 1:], e.targets[:, :-1])


def test_too_few_classes_are_named():
    with pytest.raises(ShapeError, match="chosen = 5"):
        delayed(jax.random.key(0), bank(classes=4), 2, WAYS, 1)


def layer(x, p, stride):
    """A 3 x 3 convolution, a norm over the image, ReLU; in numpy, place by place."""
    high, wide, inputs = x.shape
    kernel, around = p["kernel"].reshape(3, 3, inputs, -1), np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = np.array(
        [
            [np.einsum("ijc,ijcn->n", around[r : r + 3, c : c + 3], kernel) for c in range(0, wide, stride)]
            for r in range(0, high, stride)
        ]
    )
    y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
    return np.maximum(y * p["gain"] + p["bias"], 0)


@pytest.mark.parametrize("reduce", ["pool", "stride"])
def test_conv4_in_numpy(reduce):
    vision = Conv4(3, 17, reduce)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.1 * rng.normal(size=p.shape).astype("f"), init(vision, jax.random.key(0))
    )
    images = rng.integers(0, 256, (2, 17, 17)).astype(np.uint8)
    want = []
    for image in images:
        x = np.float64(image)[..., None] / 255
        for i in range(4):
            x = layer(x, params[f"layer{i}"], 1 if reduce == "pool" else 2)
            if reduce == "pool":
                h, w = x.shape[0] // 2, x.shape[1] // 2
                x = np.array(
                    [[x[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max((0, 1)) for c in range(w)] for r in range(h)]
                )
        want.append(x.ravel())
    got = jax.jit(vision.apply)(params, jnp.asarray(images))
    assert got.shape == (2, vision.features)
    close(got, np.float32(want))
    close(jax.jit(vision.apply)(params, images.astype(np.float32) / 255), got)


def test_jitter_is_a_small_affine_map_of_each_image():
    """Read from ramps, whose values are the places that are looked at: affine, each its own, within the bounds."""
    n, size, middle = 40, 17, 8
    ramps = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).astype(np.float32)
    same = jax.jit(jittered, static_argnums=(2, 3, 4))
    assert np.array_equal(same(jax.random.key(0), ramps, 0.0, 0.0, 0.0), ramps)
    at = np.stack([same(jax.random.key(1), np.tile(ramp, (n, 1, 1)), 0.2, 0.1, 2.0) for ramp in ramps], axis=1)
    near = at[:, :, middle - 3 : middle + 4, middle - 3 : middle + 4]
    assert np.abs(np.diff(near, 2, axis=2)).max() < 1e-4 and np.abs(np.diff(near, 2, axis=3)).max() < 1e-4
    moves = at[:, :, middle, middle] - middle
    assert 1.5 < np.abs(moves).max() <= 2.0 + 1e-5
    slopes = np.stack([np.diff(near, axis=2).mean((2, 3)), np.diff(near, axis=3).mean((2, 3))], axis=-1)
    own = np.linalg.det(slopes)  # of a turn 1, of a shear 1: what is left is the stretch along both axes
    assert np.exp(-0.2) <= own.min() < 0.95 and 1.05 < own.max() <= np.exp(0.2)
    assert 0.1 < np.abs(slopes[:, 0, 1]).max() < 0.5


def test_published_sizes():
    assert Conv4(64).features == 64  # 1 x 28 x 28 -> 64
    assert Conv4(64, reduce="stride").features == 256


def model(mixer=None, vision=None, features=6):
    body = Block(mixer or SRWM(8, 2, "identity"), MLP(8, 16), LayerNorm(8), residual="ln_skip")
    return FewShot(body, WAYS, vision, 0 if vision else features)


def test_slots_are_added_to_what_is_seen_and_an_empty_slot_adds_nothing():
    few = model(FakeSR(SRWM(8, 2, "identity")))
    params = init(few, jax.random.key(0))
    rng = np.random.default_rng(0)
    x, slots = rng.normal(size=(2, 3, 6)).astype(np.float32), np.array([[0, 4, -1], [2, -1, 0]], np.int32)
    logits = np.asarray(jax.jit(few.apply)(params, x, slots)[0])
    labels = np.concatenate([np.asarray(params["label"]), np.zeros((1, 8), np.float32)])
    fused = x @ np.asarray(params["image"]) + labels[slots]
    plain = {**params, "image": jnp.eye(8), "label": jnp.zeros((WAYS, 8))}
    bare = model(FakeSR(SRWM(8, 2, "identity")), features=8)
    close(jax.jit(bare.apply)(plain, fused, slots)[0], logits)
    assert np.abs(logits[0, 0] - logits[0, 2]).max() > 0


def test_only_a_model_with_a_state_sees_the_labels_shown_before():
    rng = np.random.default_rng(0)
    x, slots = jnp.asarray(rng.normal(size=(1, 4, 6)), jnp.float32), np.array([[0, 1, 2, -1]], np.int32)
    for mixer, sees in ((SRWM(8, 2, "identity", query_scale=1.0), True), (FakeSR(SRWM(8, 2, "identity")), False)):
        few = model(mixer)
        params = init(few, jax.random.key(1))
        run = jax.jit(lambda p, s, few=few: few.apply(p, x, s)[0][:, -1])
        moved = np.abs(run(params, jnp.asarray(slots)) - run(params, jnp.asarray(slots[:, [1, 0, 2, 3]]))).max()
        assert (moved > 1e-4) == sees


def test_vision_inside_is_vision_before_and_has_a_gradient():
    vision = Conv4(2, 16, "stride")
    whole, after = model(vision=vision), model(features=vision.features)
    params = init(whole, jax.random.key(0))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)), jnp.uint8)
    slots = jnp.zeros((2, 3), jnp.int32)
    seen = jax.jit(vision.apply)(params["vision"], images.reshape(6, 16, 16)).reshape(2, 3, -1)
    rest = {name: p for name, p in params.items() if name != "vision"}

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return jnp.sum(jnp.square(whole.apply(params, images, slots)[0]))

    value, grads = loss(params)
    close(value, np.square(jax.jit(after.apply)(rest, seen, slots)[0]).sum())
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["vision"]))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Conv4(0), "channels"),
        (lambda: Conv4(4, reduce="mean"), "reduce"),
        (lambda: Conv4(4, size=8), "size"),
        (lambda: FewShot(SRWM(8), 1, features=3), "ways"),
        (lambda: FewShot(SRWM(8), 5), "features"),
    ],
)
def test_bad_fields_are_named(make, field):
    with pytest.raises(ConfigError, match=field):
        make()
