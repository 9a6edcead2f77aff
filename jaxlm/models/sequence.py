"""A sequence model: vectors in, a linear readout at the last or at every step."""

from jaxlm.errors import ShapeError
from jaxlm.initializers import FanIn, Zeros
from jaxlm.mixers.base import Mixer
from jaxlm.module import Module, Spec
from jaxlm.ops.dense import dense
from jaxlm.ops.isolate import tokenwise
from jaxlm.typing import Array, Params, State


class SequenceModel(Module):
    """Classification or regression of sequences.

    x          (b, t, inputs)
    y          (b, outputs) with readout 'last', (b, t, outputs) with readout 'every'
    inputs     None: the body reads x as it is; otherwise a linear map with bias leads to the body's width
    """

    body: Mixer
    outputs: int
    inputs: int | None = None
    readout: str = "last"

    def __post_init__(self):
        self.check(self.readout in ("last", "every"), "readout", "'last' or 'every'")
        self.check(self.outputs > 0, "outputs", "a positive width")

    @property
    def growth(self) -> str:
        return self.body.growth

    @property
    def reads(self) -> int:
        """Width of x."""
        return self.body.reads if self.inputs is None else self.inputs

    def params(self):
        p = {
            "body": self.body.params(),
            "readout": Spec((self.body.width, self.outputs), ("embed", None), FanIn(2.0), ins=("embed",)),
            "readout_bias": Spec((self.outputs,), (None,), Zeros),
        }
        if self.inputs is not None:
            p["input"] = Spec((self.inputs, self.body.reads), ("slots", "embed"), FanIn(), ins=("slots",))
            p["input_bias"] = Spec((self.body.reads,), ("embed",), Zeros)
        return p

    def state(self, batch: int, room: int = 0):
        return self.body.state(batch, room)

    def start(self, params: Params, batch: int, room: int = 0) -> State:
        return self.body.start(params["body"], batch, room)

    def apply(
        self, params: Params, x: Array, state: State = None, starts: Array | None = None, key: Array | None = None
    ) -> tuple[Array, State]:
        """Readouts and the state after the last step."""
        if x.ndim != 3 or x.shape[-1] != self.reads:
            raise ShapeError(f"SequenceModel: x has shape {x.shape}, expected (b, t, {self.reads})")
        if self.inputs is not None:
            x = tokenwise(lambda x: dense(x, params["input"], params["input_bias"]), x)
        x, state = self.body.apply(params["body"], x, state, starts, key)
        if self.readout == "last":
            x = x[:, -1:]
        y = tokenwise(lambda x: dense(x, params["readout"], params["readout_bias"]), x)
        return (y[:, 0] if self.readout == "last" else y), state
