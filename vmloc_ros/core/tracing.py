# SPDX-License-Identifier: Apache-2.0
"""Traced networks for inference on the CPU: one call without Python's global interpreter lock (GIL).

A network of Python modules releases and takes the GIL at each of its hundreds of operations, so that a busy thread
slows it down. A traced network does so once. Its batch norms are also folded into its convolutions, which work on
channels-last memory.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4  # relative to the largest value; a larger difference means that the trace is wrong
_WARM_UP_CALLS = 3  # TorchScript optimises a traced network in its first calls


def trace_networks(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Replace a model's networks by traced ones, in place; the model then serves for inference on the CPU only.

    Networks are the model's outermost modules that take one tensor. A network stays as it is if it cannot be traced,
    if its operations depend on the input's values, or if its outputs differ once traced.

    Args:
        model: in evaluation mode.
        run: runs the model on an example.

    Returns:
        Names of the traced modules.
    """
    traced = _traced_networks(model, _example_inputs(model, run))
    originals = {name: model.get_submodule(name) for name in traced}
    _replace(model, traced)
    try:
        run()
    except Exception as error:
        logger.debug("the model does not run on traced networks: %s", error)
        _replace(model, originals)
        return []
    return list(traced)


def _example_inputs(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Inputs of the modules that take one tensor, by name, when ``run`` calls the model."""
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
    return examples


def _traced_networks(model: nn.Module, examples: dict[str, Tensor]) -> dict[str, nn.Module]:
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
    return traced


def _replace(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._modules[attribute] = module


def _traced(module: nn.Module, example: Tensor) -> nn.Module:
    """Trace a module. Raises whatever torch raises, or ValueError: the traced module's outputs differ."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends torch.compile, which needs a compiler on the robot
        # A branch on values is an error: the trace would always take the example's.
        warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        example = example.clone()
        # Another size must work, too: a camera's images need not have the example's.
        other = example[..., : -(example.shape[-1] // 4)] if example.ndim == 4 else example[:1]
        module = copy.deepcopy(module).to(memory_format=torch.channels_last)
        traced: nn.Module = torch.jit.freeze(
            torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        )
        for x in (other, example):
            for _ in range(_WARM_UP_CALLS):
                outputs = traced(x)
            _require_equal(module(x), outputs)
    return traced


def _require_equal(expected: Tensor | tuple[Tensor, ...], outputs: Tensor | tuple[Tensor, ...]) -> None:
    pairs = zip(*([x] if isinstance(x, Tensor) else x for x in (expected, outputs)), strict=True)
    for wanted, got in pairs:
        if wanted.shape != got.shape or not bool((wanted - got).abs().max() <= _TOLERANCE * (1 + wanted.abs().max())):
            raise ValueError("the traced network's output differs")
