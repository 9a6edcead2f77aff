"""Tools that dissect functions, models and what was measured of them: Taylor models, tangent kernels, fits, probes."""
