"""The binarization methods: one paper a file, one explicit dictionary.

Their parameters are declared in ``store/specs.py``; a test holds the two lists equal.
"""

from collections.abc import Mapping

from worker.methods import binary_connect, bwn, bwnh, hwgq_bwn, sq_bwn
from worker.methods.mean_magnitude import MeanMagnitudeRule
from worker.methods.protocol import Method
from worker.training.rules import ScaledSignRule

METHODS: Mapping[str, Method] = {
    "binary_connect": Method(binary_connect.binarize, binary_connect.BinaryConnectRule()),
    "bwn": Method(bwn.binarize, bwn.BwnRule()),
    "bwnh": Method(bwnh.binarize, ScaledSignRule()),
    "hwgq_bwn": Method(hwgq_bwn.binarize, MeanMagnitudeRule()),
    "sq_bwn": Method(
        sq_bwn.binarize, MeanMagnitudeRule(), binary_fractions=sq_bwn.BINARY_FRACTIONS
    ),
}
