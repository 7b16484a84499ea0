"""What tests compare and look at: errors of maps, the state of a network, an accident within it."""

from torch import Tensor, nn


def error(got: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def close(got: Tensor, expected: Tensor) -> bool:
    return error(got, expected) < 1e-12


def l2_error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


class Accident(Exception):
    pass


def fail(module, inputs, output):
    raise Accident


def last_layer(net: nn.Module) -> nn.Module:
    return list(net.modules())[-1]


def state(net: nn.Module) -> list:
    """All that a method could have changed in a network, in comparable form."""
    found: list = []
    for name, module in net.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks") and value}
        found.append((name, type(module), module.training, sorted(vars(module)), hooks))
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        found.append((name, id(tensor), tensor._version, tensor.tolist(), tensor.requires_grad, grad))
    return found
