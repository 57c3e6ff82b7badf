"""The weights of HWGQ (Cai, He, Sun and Vasconcelos, CVPR 2017).

BWN's ``mean|w| sign(w)``, trained with the identity as gradient and neither centred nor clamped:
`worker.methods.mean_magnitude.MeanMagnitudeRule`. The paper's quantisation of activations, its main
subject, is not part of this.
"""

from worker.methods.protocol import BinaryFilters, LayerProblem, sign_and_mean_magnitude


def binarize(problem: LayerProblem, /) -> BinaryFilters:
    """Code every filter as ``mean|w| sign(w)``; looks at no data."""
    codes, scale = sign_and_mean_magnitude(problem.weight)
    return BinaryFilters(codes, scale, losses=())
