"""Few-shot learning as a sequence: images and labels go by, and a mixer must bind them in its state."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Ones, Zeros
from jaxlm.mixers.base import Mixer
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.typing import Array, Params, State, wide


class Conv4(Module):
    """Four 3 x 3 convolutions, each normalised, ReLU, and halved in size (Vinyals et al. 2016, section 4.1).

    x, y      (n, size, size), uint8 of 0 to 255 or floats -> (n, features)
    reduce    'pool': stride 1, then the largest of 2 x 2 (the paper's; 28 -> 1); 'stride': stride 2 (28 -> 2), a fifth
              of the cost
    Each image is normalised over its places and channels, in place of the batch: there are no statistics to keep.
    """

    channels: int = 64
    size: int = 28
    reduce: str = "pool"

    def __post_init__(self):
        self.check(self.channels > 0, "channels", "a positive number")
        self.check(self.reduce in ("pool", "stride"), "reduce", "pool or stride")
        self.check(self.size >= 16, "size", "at least 16, to be halved four times")

    @property
    def features(self) -> int:
        side = self.size
        for _ in range(4):
            side = side // 2 if self.reduce == "pool" else -(-side // 2)
        return side * side * self.channels

    def params(self):
        c = self.channels

        def layer(inputs: int) -> dict[str, Spec]:
            kernel = Spec((9 * inputs, c), ("slots", "mlp"), FanIn(2.0), ins=("slots",))  # 3 x 3 places by inputs
            gain, bias = Spec((c,), ("mlp",), Ones, keep=True), Spec((c,), ("mlp",), Zeros)
            return {"kernel": kernel, "gain": gain, "bias": bias}

        return {f"layer{i}": layer(c if i else 1) for i in range(4)}

    def apply(self, params: Params, x: Array) -> Array:
        if x.ndim != 3 or x.shape[1:] != (self.size, self.size):
            raise ShapeError(f"Conv4: x has shape {x.shape}, expected (n, {self.size}, {self.size})")
        x = (x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32) / 255)[..., None]
        stride = 1 if self.reduce == "pool" else 2
        for i in range(4):
            p = params[f"layer{i}"]
            kernel, layout = p["kernel"].astype(x.dtype).reshape(3, 3, x.shape[-1], -1), ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, ((1, 1),) * 2, dimension_numbers=layout)
            x = jax.nn.relu(_normalised(x) * p["gain"][None, None, None] + p["bias"][None, None, None])
            x = _pooled(x) if self.reduce == "pool" else x
        return x.reshape(x.shape[0], -1)


def _normalised(x: Array, eps: float = 1e-5) -> Array:
    """Each image with mean 0 and variance 1 over places and channels.   (n, high, wide, c)"""
    y = wide(x)
    y = y - jnp.mean(y, axis=(1, 2, 3), keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 2, 3), keepdims=True) + eps)).astype(x.dtype)


def _pooled(x: Array) -> Array:
    """The largest of each 2 x 2 places, an odd last row or column left out.   (n, high, wide, c)"""
    n, high, wide, c = x.shape
    return x[:, : high // 2 * 2, : wide // 2 * 2].reshape(n, high // 2, 2, wide // 2, 2, c).max((2, 4))


def jittered(key: Array, images: Array, turn: float = 0.25, zoom: float = 0.15, shift: float = 2.0) -> Array:
    """Each image turned, stretched, sheared and moved a little at random, read between its pixels.

    images  (n, size, size) floats -> the same
    turn    largest angle and shear, radians
    zoom    largest logarithm of the stretch along either axis
    shift   largest move along either axis, pixels
    """
    n, size = images.shape[:2]
    angle, shear, logs, moves = (
        jax.random.uniform(k, (n, *more), minval=-most, maxval=most)
        for k, most, more in zip(jax.random.split(key, 4), (turn, turn, zoom, shift), ((), (), (2,), (2,)), strict=True)
    )
    middle = (size - 1) / 2
    line = jnp.arange(size, dtype=jnp.float32) - middle
    places = jnp.stack(jnp.meshgrid(line, line, indexing="ij"))

    def one(image: Array, a: Array, h: Array, z: Array, m: Array) -> Array:
        sheared = jnp.stack([jnp.cos(a), h * jnp.cos(a) - jnp.sin(a), jnp.sin(a), h * jnp.sin(a) + jnp.cos(a)])
        at = jnp.einsum("ij,jyx->iyx", sheared.reshape(2, 2) * jnp.exp(z)[:, None], places) + m[:, None, None] + middle
        return jax.scipy.ndimage.map_coordinates(image, list(at), order=1)

    return jax.vmap(one)(images, angle, shear, logs, moves)


class FewShot(Module):
    """Few-shot classification by a sequence model (Irie et al. 2022, section 4.2).

    x_n = W [vision(image_n); onehot(slot_n)] + b       logits_n = W_out body(x)_n + b_out

    images   (b, t, ...)       what `vision` reads; without vision, features (b, t, features)
    slots    (b, t) int        a label shown beside the image; -1: none shown (a zero vector)
    logits   (b, t, ways)
    """

    body: Mixer
    ways: int = 5
    vision: Module | None = None
    features: int = 0

    def __post_init__(self):
        self.check(self.ways > 1, "ways", "at least 2")
        self.check((self.features > 0) == (self.vision is None), "features", "a positive width, or else a vision")

    def params(self):
        d, vision = self.body.reads, self.vision
        seen = self.features if vision is None else vision.features  # type: ignore[attr-defined]
        p = {
            "image": Spec((seen, d), ("mlp", "embed"), FanIn(), ins=("mlp",)),
            "label": Spec((self.ways, d), ("slots", "embed"), FanIn(), ins=("slots",)),
            "bias": Spec((d,), ("embed",), Zeros),
            "body": self.body.params(),
            "readout": Spec((self.body.width, self.ways), ("embed", "slots"), FanIn(), ins=("embed",)),
            "readout_bias": Spec((self.ways,), ("slots",), Zeros),
        }
        return p if vision is None else p | {"vision": vision.params()}

    def state(self, batch: int, room: int = 0):
        return self.body.state(batch, room)

    def apply(
        self, params: Params, images: Array, slots: Array, state: State = None, starts: Array | None = None
    ) -> tuple[Array, State]:
        """Logits at every step, and the state after the last."""
        b, t = slots.shape
        if images.shape[:2] != (b, t):
            raise ShapeError(f"FewShot: images has shape {images.shape}, slots {slots.shape}: expected the same (b, t)")
        seen, vision = images, self.vision
        if vision is not None:
            see: Any = vision
            seen = see.apply(params["vision"], images.reshape(b * t, *images.shape[2:])).reshape(b, t, -1)
        label = jax.nn.one_hot(slots, self.ways, dtype=seen.dtype)
        x = dense(seen, params["image"], params["bias"]) + dense(label, params["label"])
        x, state = self.body.apply(params["body"], x, state, starts)
        return dense(x, params["readout"], params["readout_bias"]), state
