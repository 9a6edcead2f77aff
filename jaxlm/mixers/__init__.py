"""The registry: every mixer by its name, each constructible from its width alone. A new mixer adds one line here."""

from jaxlm.mixers.base import Mixer
from jaxlm.mixers.lem import LEM

MIXERS: dict[str, type[Mixer]] = {
    cls.__name__: cls
    for cls in (
        LEM,
    )
}
