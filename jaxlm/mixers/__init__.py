"""The registry: every mixer by its name, each constructible from its width alone. A new mixer adds one line here."""

from jaxlm.errors import ConfigError
from jaxlm.mixers.attention import Attention as Attention
from jaxlm.mixers.base import Mixer
from jaxlm.mixers.conv_linear_attention import ConvLinearAttention as ConvLinearAttention
from jaxlm.mixers.cornn import CoRNN as CoRNN
from jaxlm.mixers.cosformer import CosFormer as CosFormer
from jaxlm.mixers.delta_product import DeltaProduct as DeltaProduct
from jaxlm.mixers.deltanet import DeltaNet as DeltaNet
from jaxlm.mixers.gated_deltanet import GatedDeltaNet as GatedDeltaNet
from jaxlm.mixers.gla import GLA as GLA
from jaxlm.mixers.gru import GRU as GRU
from jaxlm.mixers.hgrn import HGRN as HGRN
from jaxlm.mixers.hgrn2 import HGRN2 as HGRN2
from jaxlm.mixers.kda import KDA as KDA
from jaxlm.mixers.lem import LEM as LEM
from jaxlm.mixers.liger import Liger as Liger
from jaxlm.mixers.linear_attention import LinearAttention as LinearAttention
from jaxlm.mixers.log_linear import LogLinearGatedDeltaNet as LogLinearGatedDeltaNet
from jaxlm.mixers.log_linear import LogLinearMamba2 as LogLinearMamba2
from jaxlm.mixers.lru import LRU as LRU
from jaxlm.mixers.lstm import LSTM as LSTM
from jaxlm.mixers.ltc import LTC as LTC
from jaxlm.mixers.ltm import LTM as LTM
from jaxlm.mixers.mamba import Mamba as Mamba
from jaxlm.mixers.mamba2 import Mamba2 as Mamba2
from jaxlm.mixers.mingru import MinGRU as MinGRU
from jaxlm.mixers.minlstm import MinLSTM as MinLSTM
from jaxlm.mixers.mlstm import MLSTM as MLSTM
from jaxlm.mixers.odyssey_lstm import OdysseyLSTM as OdysseyLSTM
from jaxlm.mixers.regla import ReGLA as ReGLA
from jaxlm.mixers.regular_lrnn import RegularLRNN as RegularLRNN
from jaxlm.mixers.resona import Resona as Resona
from jaxlm.mixers.retnet import RetNet as RetNet
from jaxlm.mixers.rglru import RGLRU as RGLRU
from jaxlm.mixers.rnn import RNN as RNN
from jaxlm.mixers.rwkv4 import RWKV4 as RWKV4
from jaxlm.mixers.rwkv5 import RWKV5 as RWKV5
from jaxlm.mixers.rwkv6 import RWKV6 as RWKV6
from jaxlm.mixers.rwkv7 import RWKV7 as RWKV7
from jaxlm.mixers.s5 import S5 as S5
from jaxlm.mixers.scrn import SCRN as SCRN
from jaxlm.mixers.sinks import SinkAttention as SinkAttention
from jaxlm.mixers.slstm import SLSTM as SLSTM
from jaxlm.mixers.srwm import SRWM as SRWM
from jaxlm.mixers.tnl import TNL as TNL

# What was imported above is what is registered: the names of this file are the only list.
MIXERS: dict[str, type[Mixer]] = {
    name: cls
    for name, cls in list(vars().items())
    if isinstance(cls, type) and issubclass(cls, Mixer) and cls is not Mixer
}

__all__ = ["MIXERS", "Mixer", "make", *MIXERS]  # pyright: ignore[reportUnsupportedDunderAll]


def make(name: str, width: int) -> Mixer:
    """A registered mixer of that width, its other fields at their defaults."""
    if name not in MIXERS:
        raise ConfigError(f"mixer = {name!r}: unknown; expected one of {', '.join(MIXERS)}")
    return MIXERS[name](width)  # type: ignore[call-arg]
