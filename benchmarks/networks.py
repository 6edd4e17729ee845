"""Networks for benchmarks: described by their parts, or defined by others."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable

import torch
from torch import nn

from wsgraph import WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie

__all__ = ["randomize", "resnet20", "torchvision_models"]

_KEPT = torch.library.Library("torchvision", "FRAGMENT")


def resnet20(width: int = 16, blocks: int = 3) -> WeightSpace:
    """The ResNet-20 for CIFAR-10 with its norms folded into convolutions.

    A stem, three stages of blocks with one, two and four times the width, global average pooling and a linear layer. Within a stage
    the input of a block is added to its output, so that the neurons of all these sums move together; from one stage to the next a
    convolution of one position brings it to the new width.

    Args:
        width: Channels of the first stage.
        blocks: Blocks of every stage: 3 in the ResNet-20, fewer in smaller ones.

    Example:
        >>> resnet20()
        WeightSpace(21 groups, 29 layers, 271,690 parameters)
    """
    groups = [NeuronGroup("input", 3, "input")]
    layers: list[Layer] = []
    params: list[Parameter] = []

    def connect(name: str, source: str, target: str, kernel: int = 0, stride: int = 1) -> None:
        sizes = {group.name: group.size for group in groups}
        ends = Axis(sizes[target], (Tie((target,), 1),)), Axis(sizes[source], (Tie((source,), -1),))
        axes = *ends, *([Axis(kernel)] * 2 if kernel else [])
        params.append(Parameter(f"{name}.weight", tuple(axis.size for axis in axes), "weight", axes))
        params.append(Parameter(f"{name}.bias", (sizes[target],), "bias", ends[:1]))
        weight, bias = (param.name for param in params[-2:])
        layers.append(Layer(name, "conv" if kernel else "linear", (source,), target, weight, bias, stride=stride, padding=kernel // 2))

    groups.append(NeuronGroup("stem", width, operators=("relu",), permutation="stage1"))
    connect("conv1", "input", "stem", 3)
    last = "stem"
    for stage in (1, 2, 3):
        size = width * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            widens = stage > 1 and block == 0
            pooling = ["global_avg_pool"] * (stage == 3 and block == blocks - 1)
            groups.append(NeuronGroup(f"{name}.inner", size, operators=("relu",)))
            groups.append(NeuronGroup(name, size, operators=("relu", *pooling), permutation=f"stage{stage}"))
            connect(f"{name}.conv1", last, f"{name}.inner", 3, stride=2 if widens else 1)
            connect(f"{name}.conv2", f"{name}.inner", name, 3)
            if widens:
                connect(f"{name}.downsample", last, name, 1, stride=2)
            else:
                layers.append(Layer(f"{name}.skip", "identity", (last,), name))
            last = name
    groups.append(NeuronGroup("output", 10, "output"))
    connect("fc", last, "output")
    return WeightSpace(tuple(groups), tuple(layers), tuple(params))


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and norm statistics in evaluation mode, so that no layer is the identity and no weight zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim < 2 or tensor.numel() == tensor.shape[0]:
            tensor.normal_(0.0 if name.endswith(("bias", "running_mean")) else 1.0, 0.3, generator=generator)
        else:
            tensor.normal_(0.0, math.sqrt(2 / tensor[0].numel()), generator=generator)
    return module.eval()


def torchvision_models() -> dict[str, Callable[[], nn.Module]]:
    """Constructors of torchvision's classification models by name.

    Raises:
        SystemExit: If torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise SystemExit(f"This benchmark needs torchvision: pip install torchvision ({error}).") from None
    except RuntimeError:
        # Its compiled operators do not load here. Definitions of models need none, but those of detection must have names.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            _KEPT.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import models
    # Their own initialisation takes a minute, and is overwritten; their auxiliary classifiers do not run in evaluation.
    plain = {"init_weights": False, "aux_logits": False}
    return {
        name: functools.partial(models.get_model, name, **(plain if name in ("googlenet", "inception_v3") else {}))
        for name in models.list_models(module=models)
    }
