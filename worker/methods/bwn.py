"""BWN, the binary-weight network of XNOR-Net (Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016)."""

from worker.methods.protocol import BinaryFilters, LayerProblem, sign_and_mean_magnitude


def binarize(problem: LayerProblem, /) -> BinaryFilters:
    """Code every filter as ``mean|w| sign(w)``: the baseline that looks at no data."""
    codes, scale = sign_and_mean_magnitude(problem.weight)
    return BinaryFilters(codes, scale, losses=())
