"""The error of this floor: what is wrong with a text, a tokenizer or a layout."""

from jaxlm.errors import ConfigError


class DataError(ConfigError):
    """Data that cannot be used: one line naming the field, the value and what was expected."""
