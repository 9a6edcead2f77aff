"""Reading a config.json entry by entry, and what it says of rotary positions."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import ConfigError
from jaxlm.layers.rope import DynamicNTK, Interpolation, Llama3, LongRope, Rope, Scaling, YaRN

REQUIRED: Any = object()
ACTIVATIONS = {  # their names, in our words
    "gelu": "gelu_erf", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu",
    "silu": "silu", "swish": "silu", "relu": "relu", "tanh": "tanh",
}  # fmt: skip
THEIRS = {"gelu_erf": "gelu", "gelu": "gelu_new", "silu": "silu", "relu": "relu", "tanh": "tanh"}


class Config:
    """Entries by name; every error says which entry of which file is wrong, and what was expected.

    where   the file, as an error calls it
    """

    def __init__(self, entries: Mapping[str, Any], where: str = "config.json"):
        self.entries, self.where = entries, where

    def get(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The entry, of a kind: int, float, bool, str, list or dict; the default where it is absent or null."""
        value = self.entries.get(name)
        if value is None:
            if default is REQUIRED:
                raise ConfigError(f"{self.where}: {name}: missing, expected one of type {kind.__name__}")
            return default
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"one of type {kind.__name__}")
        return kind(value)

    def only(self, **expected: Any) -> None:
        """Raise for an entry that is there and says something else, which the library does not know."""
        for name, value in expected.items():
            if self.entries.get(name, value) not in (value, None):
                raise self.wrong(name, f"{value!r}, the only form known here")

    def activation(self, name: str) -> str:
        value = self.get(name, str)
        if value not in ACTIVATIONS:
            raise self.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def inside(self, name: str) -> "Config":
        """The entries of an entry."""
        return Config(self.get(name, dict), f"{self.where}: {name}")

    def wrong(self, name: str, expected: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name} = {self.entries.get(name)!r}: expected {expected}")


def read_rope(c: Config, base: str = "rope_theta", fraction: str = "partial_rotary_factor", share: float = 1.0) -> Rope:
    """Rotary positions: `rope_parameters` of newer files, or a base, a share and `rope_scaling` of older ones."""
    where = next((n for n in ("rope_parameters", "rope_scaling") if c.entries.get(n)), None)
    r = Config({}, c.where) if where is None else c.inside(where)
    of = lambda name, old, default: r.get(name, float, c.get(old, float, default))  # noqa: E731
    scaling = _scaling(r, c)
    return Rope(of("rope_theta", base, 10000.0), of("partial_rotary_factor", fraction, share), scaling)


def _scaling(r: Config, c: Config) -> Scaling | None:
    kind = r.get("rope_type", str, r.get("type", str, "default"))
    trained = lambda: int(r.get("original_max_position_embeddings", float, c.get("max_position_embeddings", float)))  # noqa: E731
    if kind == "default":
        return None
    if kind == "linear":
        return Interpolation(r.get("factor", float))
    if kind == "dynamic":
        return DynamicNTK(r.get("factor", float), c.get("max_position_embeddings", int))
    if kind == "llama3":
        return Llama3(
            r.get("factor", float), r.get("low_freq_factor", float), r.get("high_freq_factor", float), trained()
        )
    if kind == "yarn":
        r.only(mscale=None, mscale_all_dim=None)
        fast, slow = r.get("beta_fast", float, 32.0), r.get("beta_slow", float, 1.0)
        amplitude, rounded = r.get("attention_factor", float, None), r.get("truncate", bool, True)
        return YaRN(r.get("factor", float), trained(), fast, slow, amplitude, rounded)
    if kind == "longrope":
        short, long = (tuple(map(float, r.get(f"{n}_factor", list))) for n in ("short", "long"))
        length = trained()
        factor = r.get("factor", float, c.get("max_position_embeddings", int) / length)
        return LongRope(short, long, length, factor, r.get("attention_factor", float, None))
    raise r.wrong("rope_type", "one of default, linear, dynamic, llama3, yarn, longrope")


def write_rope(rope: Rope) -> dict[str, Any]:
    """Entries that `read_rope` reads back, in the older form that every reader knows (base and share: the caller's)."""
    s = rope.scaling
    if rope.interleaved:
        raise ConfigError("Rope.interleaved = True: expected the half layout, the only one of these files")
    if s is None:
        return {"max_position_embeddings": 2048}
    if isinstance(s, Interpolation):
        return _entries(2048, rope_type="linear", factor=s.factor)
    if isinstance(s, DynamicNTK):
        return _entries(s.length, rope_type="dynamic", factor=s.factor)
    if isinstance(s, Llama3):
        more = {"low_freq_factor": s.low, "high_freq_factor": s.high}
        return _entries(s.length * s.factor, rope_type="llama3", factor=s.factor, **more, **_trained(s))
    if isinstance(s, YaRN):
        more = {"beta_fast": s.fast, "beta_slow": s.slow, "truncate": s.rounded, "attention_factor": s.amplitude}
        return _entries(s.length * s.factor, rope_type="yarn", factor=s.factor, **more, **_trained(s))
    if isinstance(s, LongRope):
        more = {"short_factor": list(s.short), "long_factor": list(s.long), "attention_factor": s.amplitude}
        return _entries(s.length * s.factor, rope_type="longrope", factor=s.factor, **more, **_trained(s))
    raise ConfigError(f"Rope.scaling = {s}: expected one that these files have a name for, or a plain base")


def _entries(length: float, **scaling: Any) -> dict[str, Any]:
    kept = {k: v for k, v in scaling.items() if v is not None}
    return {"max_position_embeddings": int(length), "rope_scaling": kept}


def _trained(s: Any) -> dict[str, int]:
    return {"original_max_position_embeddings": s.length}
