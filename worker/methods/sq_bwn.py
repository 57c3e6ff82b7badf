"""SQ-BWN: BWN under stochastic quantisation (Dong, Ni, Li, Chen, Zhu and Su, BMVC 2017).

In every step only a share of each layer's filters is binary, the others, drawn in proportion to
``||w - mean|w| sign(w)||_1 / ||w||_1``, stay float; the share grows to 1 in equal stages. The draw
is `worker.training.stochastic`; what it draws upon is, as in the authors' code, BWN with the
gradient passed straight on: `worker.methods.mean_magnitude.MeanMagnitudeRule`.
"""

from worker.methods.protocol import BinaryFilters, LayerProblem, sign_and_mean_magnitude

# The paper's stages. There each is as long as the whole training of another method; here all four
# share one budget.
BINARY_FRACTIONS = (0.5, 0.75, 0.875, 1.0)


def binarize(problem: LayerProblem, /) -> BinaryFilters:
    """Code every filter as ``mean|w| sign(w)``; looks at no data."""
    codes, scale = sign_and_mean_magnitude(problem.weight)
    return BinaryFilters(codes, scale, losses=())
