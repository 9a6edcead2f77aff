"""What a run is made of: objects, not their fields."""

import dataclasses
import math

import optax

from jaxlm.data import Text
from jaxlm.errors import ConfigError
from jaxlm.models.lm import LM
from jaxlm.sharding import RULES, Rules


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A model, an optimizer, data and a few numbers; what a config's `experiment(**knobs)` returns.

    steps           updates of the weights
    batch           rows of data an update sees, over all devices
    accumulate      the batch is run in this many equal parts, one after the other; the update is the same
                    (but for dropout)
    aux             auxiliary losses of the model in the training loss: name and weight, such as ('aux.balance', 0.01)
    spike           skip an update whose loss or gradient norm is beyond this many times its running mean, 0: none;
                    one that is not finite is always skipped
    patience        updates skipped in a row that end the run
    dtype           of the computation; weights and optimizer stay float32
    mesh            'data=4,tensor=2': devices along mesh axes; '' is one device
    log_every       updates between two lines of the log
    evaluate_every  updates between two evaluations, 0: only at the end
    evaluate_length tokens a row in evaluations, 0: as in training; longer rows lose less context at their heads
    evaluate_rows   rows of held-out data in evaluations during the run, 0: all; the last one always reads all
    save_every      updates between two checkpoints, 0: only at the end
    keep            how many checkpoints stay
    baselines       at the end, compress the held-out bytes with gzip and n-gram models, for comparison
    prompt, sample  at the end, write `sample` tokens after `prompt`
    """

    name: str
    model: LM
    optimizer: optax.GradientTransformation
    data: Text
    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    aux: tuple[tuple[str, float], ...] = ()
    spike: float = 0.0
    patience: int = 10
    dtype: str = "float32"
    mesh: str = ""
    rules: Rules = RULES
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_length: int = 0
    evaluate_rows: int = 64
    save_every: int = 0
    keep: int = 2
    baselines: bool = False
    prompt: str = ""
    sample: int = 256

    def __post_init__(self):
        for field in ("steps", "batch", "accumulate", "patience", "log_every", "keep"):
            if getattr(self, field) < 1:
                raise ConfigError(f"Experiment.{field} = {getattr(self, field)}: expected at least 1")
        for field in ("evaluate_every", "evaluate_length", "evaluate_rows", "save_every", "sample"):
            if getattr(self, field) < 0:
                raise ConfigError(f"Experiment.{field} = {getattr(self, field)}: expected 0 or more")
        if self.batch % self.accumulate:
            raise ConfigError(f"Experiment.accumulate = {self.accumulate}: expected a divisor of batch = {self.batch}")
        if self.spike != 0 and not 1 < self.spike < math.inf:
            raise ConfigError(f"Experiment.spike = {self.spike}: expected more than 1 times the mean, or 0 for none")
        names = [name for name, _ in self.aux]
        for name, weight in self.aux:
            if not name.startswith("aux.") or names.count(name) > 1 or not 0 <= weight < math.inf:
                raise ConfigError(f"Experiment.aux = {(name, weight)}: expected 'aux.*', once, and a weight from 0")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"Experiment.dtype = {self.dtype!r}: expected float32 or bfloat16")
        if self.data.vocab > self.model.vocab:
            raise ConfigError(
                f"LM.vocab = {self.model.vocab}: expected at least {self.data.vocab}, the tokenizer's vocabulary"
            )
