"""Starting values of the zoo's weights."""

from torch import nn


def initialize(module: nn.Module) -> None:
    """Draw convolution and linear weights from He's normal distribution; biases become 0.

    He, Zhang, Ren and Sun, ICCV 2015: a variance of 2 / fan keeps the size of what ReLUs pass on,
    so that even an untrained deep net gives logits worth comparing. Convolutions count the fan of
    their output as is usual; linear layers that of their input, since a classifier's few outputs
    would make its first logits huge. Batch norm keeps torch's start (scale 1, shift 0).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
