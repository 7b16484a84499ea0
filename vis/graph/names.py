"""Find layers by name."""

from torch import nn

from vis.errors import UserError, did_you_mean


def resolve_layer(net: nn.Module, layer: str) -> str:
    """Return the module name of a layer, given by module name or by a key of the network's `layer_names`. Raises UserError."""
    aliases = getattr(net, "layer_names", {})
    if layer in aliases:
        return aliases[layer]
    modules = dict(net.named_modules())
    if layer and layer in modules:
        return layer
    raise UserError(f"{type(net).__name__} has no layer {layer!r}.{did_you_mean(layer, aliases or list(modules)[1:])}")
