# SPDX-License-Identifier: Apache-2.0
"""Networks as single calls that hold no Python lock, so that another thread's work does not hold them up.

A network of Python modules gives the lock back and takes it again at each of its hundreds of operations. A traced one
does so once; it also has its batch norms folded into its convolutions, which work on channels-last memory.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # relative to the largest value; what differs more has not been traced but misunderstood
_WARM_UP_CALLS = 3  # the interpreter of traced networks optimises in its first calls


def trace_networks(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Replace a model's networks by traced ones, in place: for inference on the CPU only from then on.

    These are its outermost modules that take one tensor. One that cannot be traced, that chooses its operations by the
    input's values, or that answers otherwise once traced, stays as it is.

    Args:
        model: in evaluation mode.
        run: has the model answer an example.

    Returns:
        Names of what has been traced.
    """
    examples: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor):
                examples[name] = inputs[0]

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    traced: dict[str, nn.Module] = {}
    for name, example in sorted(examples.items()):  # a module comes before its parts
        if any(name.startswith(f"{outer}.") for outer in traced):
            continue
        module = model.get_submodule(name)
        if next(module.parameters(), None) is None:
            continue
        try:
            replacement = _traced(module, example)
        except Exception as error:  # torch raises many types
            logger.debug("%s stays as it is: %s", name, " ".join(str(error).split())[:300])
            continue
        traced[name] = replacement
    originals = {name: model.get_submodule(name) for name in traced}
    _replace(model, traced)
    try:
        run()
    except Exception as error:
        logger.debug("the model does not run on traced networks: %s", error)
        _replace(model, originals)
        return []
    return list(traced)


def _replace(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._modules[attribute] = module


def _traced(module: nn.Module, example: Tensor) -> nn.Module:
    """Raises whatever torch does, or ValueError where the answers differ."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another way, which takes a compiler on the robot
        # Python that decides by values is an error: the trace would decide the same way for ever.
        warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        example = example.clone()
        # Another size must do too: a camera's pictures need not have the example's.
        other = example[..., : -(example.shape[-1] // 4)] if example.ndim == 4 else example[:1]
        module = copy.deepcopy(module).to(memory_format=torch.channels_last)
        traced: nn.Module = torch.jit.freeze(
            torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        )
        for x in (other, example):
            for _ in range(_WARM_UP_CALLS):
                answers = traced(x)
            _require_equal(module(x), answers)
    return traced


def _require_equal(expected: Tensor | tuple[Tensor, ...], answers: Tensor | tuple[Tensor, ...]) -> None:
    pairs = zip(*([x] if isinstance(x, Tensor) else x for x in (expected, answers)), strict=True)
    for wanted, got in pairs:
        if wanted.shape != got.shape or not bool((wanted - got).abs().max() <= _TOLERANCE * (1 + wanted.abs().max())):
            raise ValueError("the traced network gives another answer")
