"""Named random initialisations of a whole network, and permutations of its weights."""

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vis.models.random_weight import INITIALISATIONS, RandomWeight, parallel
from vis.models.streamed import StreamedLinear

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def initialise(
    net: nn.Module, init: str, std: float, seed: int, only: Callable[[str], bool] = lambda name: True
) -> None:
    """Fill the parameters of `net` in place: weights by the named initialisation, biases 0, norms the identity.

    only: selects the modules to fill, by name; all by default. A streamed layer gets the generator of its weights.
    Parameters that are neither weight nor bias (ConvNeXt's layer scale, a PReLU's slope) keep their values.
    Raises ValueError for an unknown initialisation.
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {init!r}: give {', '.join(INITIALISATIONS)} or default")
    blocks: list[tuple[RandomWeight, Tensor, slice, slice]] = []
    for module_name, module in net.named_modules():
        if not only(module_name):
            continue
        if isinstance(module, StreamedLinear):
            rows, columns = module.out_features, module.in_features
            module.source = RandomWeight(init, std, seed, f"{module_name}.weight", rows, columns, rows)
        if isinstance(module, _NORMS):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(module_name, recurse=False):
            own_name = name.rpartition(".")[2]
            columns = math.prod(parameter.shape[1:])
            if "bias" in own_name:
                parameter.zero_()
            elif columns > 1 or (parameter.ndim >= 2 and "weight" in own_name):
                parameter.data = parameter.contiguous()  # a copy only if it was in channels_last
                rows, kernel = len(parameter), math.prod(parameter.shape[2:])
                source = RandomWeight(init, std, seed, name, rows, columns, rows * kernel)
                matrix = parameter.detach().view(rows, columns)
                blocks += [(source, matrix, r, c) for r in source.row_tiles() for c in source.column_tiles()]

    def fill(block: tuple[RandomWeight, Tensor, slice, slice]) -> None:
        source, matrix, rows, columns = block
        matrix[rows, columns] = source.block(rows, columns)

    parallel(fill, blocks)


@torch.no_grad()
def permute(net: nn.Module, seed: int, only: Callable[[str], bool] = lambda name: True) -> None:
    """Permute the values of each parameter of `net` in place, weights and biases, each inside its own tensor.

    only: selects the modules, by name. A parameter's permutation depends on the seed and its name alone.
    """
    for module_name, module in net.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False) if only(module_name) else ():
            order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(parameter.numel())
            parameter.copy_(parameter.flatten()[torch.from_numpy(order)].view(parameter.shape))
