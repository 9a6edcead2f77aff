"""The errors of the library. Each names the field, the value that came and what was expected, in one line."""


class ConfigError(ValueError):
    """A hyperparameter, name or argument that cannot be used."""


class ShapeError(ValueError):
    """An array or a weight of the wrong shape."""


class UnknownAxis(ConfigError):
    """A logical axis name that no rule places."""
