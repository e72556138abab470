"""The forms of files that public code of this field writes, and what becomes of each here."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.nn import functional

from tests.models.reference_networks import (
    AttackerModel,
    DeepMindPreActResNet18,
    DeepMindWideResNet,
    PreActResNet18,
    ResNet18,
    WideResNet,
    under,
)

Reference = Callable[..., nn.Module]


class Form(NamedTuple):
    """How a file of public code looks."""

    network: str
    """The name here of the network that computes the same; empty if there is none."""
    written_by: str
    holds: str
    """What the file holds, in words."""
    reference: Reference
    """The network of the public code; `width` divides its widths."""
    content: Callable[[nn.Module], Any]
    refused: str = ""
    """Why it is refused, if it is."""


def plain(network: nn.Module) -> Any:
    return under("", network)


def parallel(network: nn.Module) -> Any:
    return under("module.", network)


def with_state_dict(network: nn.Module, **others: Any) -> Any:
    return {"state_dict": under("module.", network), **others}


def gairat(network: nn.Module) -> Any:
    others = {"test_nat_acc": 0.8, "test_pgd20_acc": 0.5, "optimizer": {"state": {}}}
    return {"epoch": 3, "state_dict": under("module.", network), **others}


def awp(network: nn.Module) -> Any:
    numbers = {"test_robust_acc": 0.5, "test_robust_loss": 1.0, "test_loss": 1.0, "test_acc": 0.8}
    return {"state_dict": under("module.", network), **numbers}


def robustness(network: nn.Module) -> Any:
    others = {"optimizer": {"state": {}}, "schedule": None, "epoch": 1, "amp": None}
    return {"model": under("module.", network), **others}


def pytorch_cifar(network: nn.Module) -> Any:
    return {"net": under("module.", network), "acc": 95.0, "epoch": 199}


def madry(width: int = 1) -> nn.Module:
    return AttackerModel(ResNet18(width))


wrn_28 = partial(WideResNet, blocks=4)
swish = functional.silu

FORMS = {
    "atbsl_resnet18_module": Form(
        "resnet18", "AT-BSL", "state_dict of DataParallel", ResNet18, parallel
    ),
    "mart_resnet18_module": Form(
        "resnet18", "MART", "state_dict of DataParallel", ResNet18, parallel
    ),
    "dafa_resnet18_state_dict_module": Form(
        "resnet18", "DAFA", "`state_dict` of DataParallel", ResNet18, with_state_dict
    ),
    "gairat_resnet18_pthtar": Form(
        "resnet18", "GAIRAT", "`state_dict` beside optimiser and accuracies", ResNet18, gairat
    ),
    "kuangliu_resnet18_net": Form(
        "resnet18", "pytorch-cifar (kuangliu)", "`net`, `acc`, `epoch`", ResNet18, pytorch_cifar
    ),
    "kuangliu_resnet18_plain": Form(
        "resnet18", "pytorch-cifar; LAS-AT, WAT", "state_dict", ResNet18, plain
    ),
    "rb_resnet18": Form("resnet18", "RobustBench ResNet-18", "state_dict", ResNet18, plain),
    "extra_namespace": Form(
        "resnet18",
        "training scripts",
        "`state_dict` beside the arguments, argparse.Namespace",
        ResNet18,
        partial(with_state_dict, args=Namespace(lr=0.1), epoch=1),
    ),
    "extra_numpy": Form(
        "resnet18",
        "RoBal and others",
        "`state_dict` beside a number of NumPy",
        ResNet18,
        partial(with_state_dict, best_acc=np.float64(0.5), epoch=1),
    ),
    "extra_numpy_array": Form(
        "resnet18",
        "training scripts",
        "`state_dict` beside an array of NumPy",
        ResNet18,
        partial(with_state_dict, curve=np.arange(4.0), epoch=1),
    ),
    "madry_resnet18": Form(
        "resnet18",
        "robustness (MadryLab)",
        "`model`: network, normalisation, and an attack that holds both again",
        madry,
        robustness,
    ),
    "awp_preact_module": Form(
        "preact-resnet18",
        "AWP model_200.pth",
        "state_dict of DataParallel",
        PreActResNet18,
        parallel,
    ),
    "awp_preact_best": Form(
        "preact-resnet18",
        "AWP model_best.pth",
        "`state_dict` beside accuracies",
        PreActResNet18,
        awp,
    ),
    "cfa_preact": Form("preact-resnet18", "CFA", "state_dict", PreActResNet18, plain),
    "nfgsm_preact": Form(
        "nfgsm-preact-resnet18",
        "N-FGSM",
        "state_dict",
        partial(PreActResNet18, raw=True),
        plain,
        "as `preact-resnet18`, whose shortcuts take other inputs: told by its running means",
    ),
    "rb_preact_in_resnet.py": Form(
        "",
        "RobustBench PreActResNet (in resnet.py)",
        "state_dict",
        partial(PreActResNet18, last_norm=False),
        plain,
        "does not normalise before its last layer",
    ),
    "trades_wrn34_module": Form(
        "wrn-34-10", "TRADES", "state_dict of DataParallel, with sub_block1", WideResNet, parallel
    ),
    "mart_wrn34_module": Form(
        "wrn-34-10", "MART", "state_dict of DataParallel, with sub_block1", WideResNet, parallel
    ),
    "atbsl_wrn34_module": Form(
        "wrn-34-10", "AT-BSL", "state_dict of DataParallel, with sub_block1", WideResNet, parallel
    ),
    "rb_wrn34_subblock": Form(
        "wrn-34-10", "RobustBench WRN-34-10", "state_dict, with sub_block1", WideResNet, plain
    ),
    "adt_wrn28_module": Form(
        "wrn-28-10", "ADT", "state_dict of DataParallel, with sub_block1", wrn_28, parallel
    ),
    "rb_wrn28_state_dict_module": Form(
        "wrn-28-10",
        "RobustBench WRN-28-10 (Carmon et al.)",
        "`state_dict` of DataParallel",
        partial(wrn_28, sub_block=False),
        with_state_dict,
    ),
    "rb_dm_wrn28_swish": Form(
        "dm-wrn-28-10-swish",
        "Gowal et al., Rebuffi et al., Wang et al. (DMWideResNet, Swish)",
        "state_dict",
        partial(DeepMindWideResNet, activation=swish),
        plain,
        "as `wrn-28-10`, which pads otherwise and has ReLU",
    ),
    "rb_dm_wrn28_relu": Form(
        "dm-wrn-28-10",
        "RobustBench DMWideResNet, ReLU",
        "state_dict",
        DeepMindWideResNet,
        plain,
        "as `wrn-28-10`, which pads otherwise",
    ),
    "rb_dm_preact18": Form(
        "dm-preact-resnet18",
        "RobustBench DMPreActResNet",
        "state_dict",
        DeepMindPreActResNet18,
        plain,
        "as `preact-resnet18`, whose shortcuts are 1x1 convolutions",
    ),
}
