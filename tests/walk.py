"""The operations of a traced program, those inside its loops and calls among them."""

from jax.extend.core import jaxprs_in_params


def walk(jaxpr):
    """Every equation of a jaxpr, closed or not, depth first."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from walk(sub)
