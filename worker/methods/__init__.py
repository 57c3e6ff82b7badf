"""The binarization methods: one paper a file, one explicit dictionary.

Their parameters are declared in ``store/specs.py``; a test holds the two lists equal.
"""

from collections.abc import Mapping

from worker.methods import bwn, bwnh
from worker.methods.protocol import Method

METHODS: Mapping[str, Method] = {
    "bwn": Method(bwn.binarize),
    "bwnh": Method(bwnh.binarize),
}
