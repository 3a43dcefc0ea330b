"""A device that computes on the CPU and is as strict as a GPU, for machines that have none.

A tensor of the device ``strict`` wraps a CPU tensor. As on a GPU, tensors of two devices do not meet (single numbers
and indices of a GPU tensor may lie on the CPU), ``numpy()`` and generators of the CPU are refused, and matrix products
of integers do not exist. ``register()`` makes it known for the whole process, with Lightning's
``--trainer.accelerator strict --trainer.strategy strict``: tests call it in a process of their own.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import library
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = torch.device("cpu")  # until it is registered
TRANSFERS = {"copy_", "_to_copy", "to"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot"}
# PyTorch would make an empty tensor of these and enlarge it
SIZED = ("arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m", "randperm", "randperm.generator")
operations: Counter[str] = Counter()  # how often each ran on the device
registrations: list[library.Library] = []  # held, as one ends with its object


class StrictTensor(torch.Tensor):
    """A tensor on the strict device; ``held`` is the CPU tensor inside."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **layout)

    def __init__(self, held):
        self.held = held

    def __repr__(self, **_):
        return f"StrictTensor({self.held})"

    def tolist(self):  # PyTorch refuses it for subclasses; a GPU gives it
        return self.held.tolist()

    def __format__(self, specification):
        return format(self.held, specification)

    def __deepcopy__(self, memo):
        copied = StrictTensor(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol):  # files hold what a GPU's would hold after map_location="cpu"
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, *args, **(kwargs or {}))


def refuse_mixing(operation, name, tensors, args):
    """What a GPU would refuse."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, StrictTensor) and tensor.dim()]
    if strangers and name not in TRANSFERS and not (name in INDEXING and isinstance(args[0], StrictTensor)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} got {DEVICE} and cpu")
    if name in PRODUCTS and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
        raise RuntimeError(f"{operation} is not implemented for {tensors[0].dtype} on {DEVICE}")


def _inside(leaf):
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, StrictTensor) else leaf


@torch.inference_mode(False)  # parameters are made anew on their way here, and must be trainable afterwards
def compute(operation, *args, **kwargs):
    """Run an operation of ATen on the tensors inside, and wrap what comes out."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, StrictTensor) for tensor in tensors)
    name = operation.overloadpacket.__name__
    if name == "_has_compatible_shallow_copy_type":
        return False
    if there:
        refuse_mixing(operation, name, tensors, args)
        operations[name] += 1
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.device):
            there = leaf.type == DEVICE.type
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a generator of {DEVICE}, but {operation} got one of the cpu")
    inside, inside_named = tree_map(_inside, (args, kwargs))
    result = operation(*inside, **inside_named)
    given = {id(held): tensor for tensor in tensors if (held := getattr(tensor, "held", tensor)) is not None}

    def outside(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if operation._schema.is_mutable and id(leaf) in given:  # written in place: the tensor that was given
            return given[id(leaf)]
        return StrictTensor(leaf) if there else leaf

    return tree_map(outside, result)


class Backend(_DummyBackendModule):
    """What PyTorch asks of the module ``torch.strict``."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class StrictAccelerator(Accelerator):
    """One strict device, for Lightning."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return 1

    @staticmethod
    def get_parallel_devices(devices):
        return [DEVICE]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return DEVICE.type


def register():
    """Make the device known to PyTorch and Lightning, for the rest of the process."""
    global DEVICE
    _setup_privateuseone_for_python_backend("strict", backend_module=Backend())
    DEVICE = torch.device("strict", 0)
    fallback, makers = library.Library("_", "IMPL"), library.Library("aten", "IMPL")
    registrations.extend([fallback, makers])
    fallback.fallback(compute, "PrivateUse1")
    for name in SIZED:
        packet, _, overload = name.partition(".")
        makers.impl(
            name, partial(compute, getattr(getattr(torch.ops.aten, packet), overload or "default")), "PrivateUse1"
        )
    AcceleratorRegistry.register("strict", StrictAccelerator, description="the strict device")
    StrategyRegistry.register("strict", SingleDeviceStrategy, description="the strict device", device=DEVICE)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters change their class on the way
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes them on the CPU first
