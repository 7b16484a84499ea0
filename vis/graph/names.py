"""Find layers by name."""

from torch import nn

from vis.errors import UserError, did_you_mean


def resolve_layer(net: nn.Module, layer: str) -> str:
    """Return the module name of a layer, given by module name or by the network's own name (`own_name`). Raises UserError."""
    aliases = getattr(net, "layer_names", {})
    block, dot, rest = layer.partition(".")
    name, modules = aliases.get(block, block) + dot + rest, dict(net.named_modules())
    if name and name in modules:
        return name
    raise UserError(f"{type(net).__name__} has no layer {layer!r}.{did_you_mean(layer, aliases or list(modules)[1:])}")


def own_name(net: nn.Module, layer: str) -> str:
    """Return a network's own name of a layer, by its `layer_names`: conv5_1, or fire9.squeeze in a named block.

    Return `layer`, the module name, if it has none.
    """
    for name, module in getattr(net, "layer_names", {}).items():
        if f"{layer}.".startswith(f"{module}."):
            return str(name + layer[len(module) :])
    return layer
