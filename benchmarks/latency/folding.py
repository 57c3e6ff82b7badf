"""Networks without batch norm: what a rival that has no such operation of its own is given."""

import copy

from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.layers import replace_layer


def without_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy whose batch norms right behind a layer are folded into it."""
    folded = copy.deepcopy(network)
    for node in fx.symbolic_trace(folded).graph.nodes:
        if node.op != "call_module" or node.args[0].op != "call_module":
            continue
        before = node.args[0].target
        layer, norm = folded.get_submodule(before), folded.get_submodule(node.target)
        match layer, norm:
            case nn.Conv2d(), nn.BatchNorm2d():
                replace_layer(folded, before, fuse_conv_bn_eval(layer, norm))
            case nn.Linear(), nn.BatchNorm1d():
                replace_layer(folded, before, fuse_linear_bn_eval(layer, norm))
            case _:
                continue
        replace_layer(folded, node.target, nn.Identity())
    return folded
