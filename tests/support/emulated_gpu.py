"""A GPU without a GPU: a torch device "gpu" whose tensors are computed on the CPU, and which is as strict as CUDA.

Tensors of two devices, a CPU generator, an index of the other device, `.numpy()`: all raise here as they do there. Kernels,
memory and speed are the CPU's. Run as a script it is `vis-run` on that device (`emulated_gpu.py method=gbp ...`), or another
script (`emulated_gpu.py scripts/gpu_check.py ...`). Python processes that it starts have the device too.
"""

import functools
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, gpu:0 and cpu!"
MOVES = ("copy_", "_to_copy", "_copy_from")  # what may have tensors of both


class Module:
    """What torch asks of `torch.gpu`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class EmulatedTensor(torch.Tensor):
    """An empty tensor of the device. Its numbers, a tensor on the CPU, hang on its storage, which outlives this object."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, numbers: Tensor) -> "EmulatedTensor":
        empty = torch._C._acc.create_empty_tensor(numbers.shape, numbers.dtype)
        empty.__class__ = cls
        empty.untyped_storage().numbers = numbers
        return empty

    def __init__(self, numbers: Tensor) -> None:
        pass

    def data_ptr(self) -> int:
        return _numbers(self).data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        copied.__dict__.update(self.__dict__)  # that it is a parameter
        return copied

    def __array__(self, *_: Any) -> None:
        raise TypeError("can't convert a gpu tensor to numpy: use Tensor.cpu()")

    def __repr__(self, **_: Any) -> str:
        return f"EmulatedTensor({_numbers(self)})"


def _is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "gpu"


def _numbers(value: Any) -> Any:
    return value.untyped_storage().numbers if _is_there(value) else value


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    here = [value for value in tensors if not _is_there(value)]
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):  # an index on the CPU is taken, a value is not
        value = args[2] if len(args) > 2 else None
        wrong = not _is_there(args[0]) or (isinstance(value, Tensor) and not _is_there(value) and value.dim() > 0)
    else:
        wrong = name not in MOVES and len(here) < len(tensors) and any(value.dim() > 0 for value in here)
    if wrong and here:
        raise RuntimeError(f"{MIXED} ({name})")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"Expected a 'gpu' device type for generator but found 'cpu' ({name})")


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """One of torch's operations: on the CPU, with the result where it belongs."""
    name = op._schema.name.partition("::")[2]
    _check(name, args, kwargs)
    given = [value for value in tree_flatten((args, kwargs))[0] if _is_there(value)]
    there = torch.device(kwargs["device"]).type == "gpu" if kwargs.get("device") is not None else bool(given)
    changes = {key: value for key, value in (("device", "cpu"), ("pin_memory", False)) if kwargs.get(key) is not None}
    on_cpu, words = tree_map(_numbers, (args, kwargs | changes))
    if name in ("copy_", "_copy_from"):
        into, source = (0, 1) if name == "copy_" else (1, 0)
        on_cpu[into].copy_(on_cpu[source])
        return args[into]
    if name == "convolution_overrideable":
        op = torch.ops.aten.convolution.default
    elif name == "convolution_backward_overrideable":
        op = torch.ops.aten.convolution_backward.default
        gradient, x, weight, *geometry, mask = on_cpu
        transposed, groups = geometry[3], geometry[5]
        bias = [weight.shape[1] * groups if transposed else weight.shape[0]] if mask[2] else None
        on_cpu = (gradient, x, weight, bias, *geometry, mask)
    with torch._C._AutoDispatchBelowAutograd():
        try:
            out = op(*on_cpu, **words)
        except RuntimeError as error:  # the emulated tensor is contiguous, its numbers may be channels_last
            if name not in ("view", "_unsafe_view", "_reshape_alias") or "view size" not in str(error):
                raise
            out = on_cpu[0].reshape(on_cpu[1])
    changed = {id(_numbers(value)): value for value in given}

    def place(value: Any) -> Any:
        if not there or not isinstance(value, Tensor) or _is_there(value):
            return value
        return changed[id(value)] if id(value) in changed else EmulatedTensor(value)

    return tree_map(place, out)


def _numpy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
    if _is_there(self):
        raise TypeError("can't convert a gpu tensor to numpy: use Tensor.cpu()")
    return torch._C.TensorBase.numpy(self, *args, **kwargs)


def register() -> torch.device:
    """Make the device; once in a process."""
    backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Module())
    library = register.library = torch.library.Library("aten", "IMPL")  # type: ignore[attr-defined]  # lives as long as this
    for full in torch._C._dispatch_get_all_op_names():
        space, _, name = full.partition("::")
        has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, full)
        if space != "aten" or (has("CompositeImplicitAutograd") and not has("CPU")):
            continue
        packet, _, overload = name.partition(".")
        try:
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        except (AttributeError, RuntimeError):  # an operation of TorchScript's
            continue
        library.impl(name, functools.partial(_compute, op), "PrivateUse1")
    torch.Tensor.numpy = _numpy  # type: ignore[method-assign]  # as CUDA's tensors have it
    return torch.device("gpu:0")


def install() -> None:
    """Make the device, and let runs have it whatever device= says, but cpu."""
    device = register()
    from vis.runner import experiment

    experiment.pick_device = lambda name: torch.device("cpu") if name == "cpu" else device  # type: ignore[assignment]  # a test double
    save = torch.save  # pickles a tensor's storage, which is empty here
    torch.save = lambda value, *args, **kwargs: save(tree_map(_on_cpu, value), *args, **kwargs)


def inherit(folder: Path) -> None:
    """Let the Python processes that this one starts have the device; folder: of the file that Python runs as it starts."""
    here = Path(__file__).resolve()
    paths = [str(here.parent), str(here.parents[2])]
    text = f"import sys\nsys.path[:0] = {paths!r}\nimport emulated_gpu\nemulated_gpu.install()\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def main() -> int:
    install()
    folder = tempfile.TemporaryDirectory()
    inherit(Path(folder.name))
    if sys.argv[1:] and sys.argv[1].endswith(".py"):
        del sys.argv[0]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    from vis.run import main as vis_run

    return vis_run()


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu() if _is_there(value) else value


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
