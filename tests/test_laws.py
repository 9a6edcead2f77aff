"""The seven laws over every registered mixer, each built from its width alone."""

from laws.subject import Subject
from laws.suite import Laws, subjects

from jaxlm.mixers import MIXERS, make

WIDTH = 16


@subjects({name: Subject(make(name, WIDTH)) for name in MIXERS})
class TestMixers(Laws):
    pass
