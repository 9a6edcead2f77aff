"""Controlled experiments of theory papers, each one module: `jaxlm reproduce NAME`, `jaxlm reproduce theory`.

A module is a result (`jaxlm.papers`) that also holds QUESTION, one sentence. The closed form stands beside the
measurement in it; what others could use too is a tool in `jaxlm.analysis`, or stands with the data and tasks.
"""
