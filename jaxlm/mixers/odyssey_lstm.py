"""The LSTM with peepholes, and what is left of it without each of its parts: a search space odyssey."""

import jax
import jax.numpy as jnp

from jaxlm.initializers import Normal
from jaxlm.mixers.base import Mixer, leaf
from jaxlm.module import Spec
from jaxlm.ops.cell import Affine, Mix, cell
from jaxlm.ops.isolate import isolate, spoil
from jaxlm.typing import Array, Params, State, wide

VARIANTS = ("V", "NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "NP", "FGR")
WITHOUT = {"NIG": "i", "NFG": "f", "NOG": "o", "CIFG": "f"}  # the gate that a variant has no weights for


class OdysseyLSTM(Mixer):
    """LSTM with peepholes p, and its eight ablations (Greff et al. 2015, sections II and IV).

    z = tanh(W_z u_n + R_z y_{n-1} + b_z)
    i = σ(W_i u_n + R_i y_{n-1} + p_i c_{n-1} + b_i)      f = σ(W_f u_n + R_f y_{n-1} + p_f c_{n-1} + b_f)
    c_n = i z + f c_{n-1}
    o = σ(W_o u_n + R_o y_{n-1} + p_o c_n + b_o)          reads the NEW c
    y_n = o tanh(c_n)

    variant   V the above; NIG i = 1; NFG f = 1; NOG o = 1; CIFG f = 1 - i; NIAF z without tanh; NOAF y without tanh;
              NP no peepholes; FGR every gate reads all gates of the step before: + R_ig i_{n-1} + R_fg f_{n-1} + ...

    input     u        (b, t, i)      i = inputs, by default the width
    output    y        (b, t, d)
    state     y, c     (b, d);  FGR: gates (b, 3, d), i, f, o of the last step, 0 at the start
    The gate axis of all weights is ordered i, f, o, z, without those that the variant lacks; `regulators` (FGR)
    are ordered (gate read, from, gate, to). All weights start at N(0, 0.1²).
    """

    width: int
    inputs: int | None = None
    variant: str = "V"

    paper = "Greff et al. 2015"

    def __post_init__(self):
        self.check(self.variant in VARIANTS, "variant", f"one of {', '.join(VARIANTS)}")

    @property
    def reads(self) -> int:
        return self.width if self.inputs is None else self.inputs

    @property
    def gates(self) -> str:
        """The gates that have weights."""
        return "ifo".replace(WITHOUT.get(self.variant, ""), "")

    def params(self):
        m, init, g = self.width, Normal(0.1), len(self.gates)
        # Rows of a recurrent matrix are not `embed`: split as the batch is, they would be gathered at every step, and
        # XLA's partitioner (seen with jax 0.10.2) then gives wrong gradients of the scan.
        p = {
            "input": Spec((self.reads, g + 1, m), ("embed", None, "state"), init, ins=("embed",)),
            "hidden": Spec((m, g + 1, m), ("head", None, "state"), init, ins=("head",)),
            "bias": Spec((g + 1, m), (None, "state"), init, keep=True),
        }
        if self.variant != "NP":
            p["peephole"] = Spec((g, m), (None, "state"), init, keep=True)
        if self.variant == "FGR":
            p["regulators"] = Spec((g, m, g, m), (None, "head", None, "state"), init, ins=("head",))
        return p

    def state(self, batch: int, room: int = 0):
        one = leaf(batch, (self.width,), ("state",))
        gates = {"gates": leaf(batch, (3, self.width), (None, "state"))} if self.variant == "FGR" else {}
        return {"y": one, "c": one} | gates

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        state, fresh = self.enter(params, x, state, starts)
        x, state, spoiled = isolate(starts, x, state)
        maps = {"gates": Affine(params["input"], params["bias"], params["hidden"])}
        if self.variant == "FGR":
            m = self.width
            maps["regulators"] = Affine(None, None, params["regulators"].reshape(3 * m, 3, m))
        state, fresh = self.look(params, state), None if fresh is None else self.look(params, fresh)
        ys, state = cell(self.advance, maps, x, state, starts, fresh)
        state = {name: s for name, s in state.items() if name != "peephole"}
        return spoil(spoiled, ys.astype(x.dtype)), spoil(spoiled[:, -1], state)

    def look(self, params: Params, state: State) -> State:
        """The state with the peepholes in it: they meet no product, so they ride through the loop beside the cells."""
        if self.variant == "NP":
            return state
        peephole = wide(params["peephole"])[None]
        return state | {"peephole": jnp.broadcast_to(peephole, (state["c"].shape[0], *peephole.shape[1:]))}

    def advance(self, s: State, mix: Mix) -> tuple[Array, State]:
        """One step."""
        *drives, z = mix("gates", s["y"])
        if self.variant == "FGR":
            read = mix("regulators", s["gates"].reshape(s["gates"].shape[0], -1))
            drives = [a + b for a, b in zip(drives, read, strict=True)]

        def gate(name: str, c: Array) -> Array:
            """σ of what drives a gate that looks at c."""
            g = self.gates.find(name)
            if g < 0:
                return jnp.ones_like(c)
            return jax.nn.sigmoid(drives[g] + s["peephole"][:, g] * c if "peephole" in s else drives[g])

        i = gate("i", s["c"])
        f = 1 - i if self.variant == "CIFG" else gate("f", s["c"])
        c = i * (z if self.variant == "NIAF" else jnp.tanh(z)) + f * s["c"]
        o = gate("o", c)
        y = o * (c if self.variant == "NOAF" else jnp.tanh(c))
        new = {"y": y, "c": c} | ({"gates": jnp.stack([i, f, o], axis=1)} if "gates" in s else {})
        return y, s | new
