"""Encoders of timm from elsewhere: `-pretrained_weights timm:FILE`, or `timm:` alone for the weights in timm's cache.

A file is a state dict of the model that the plans name, of timm, of torchvision, or of a project of `PREFIXES`.
timm's own loader puts it into the model. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ssp.console import some
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.bundles import ENDING, read_shared
from nnunet_ssp.files.nnunet import OWN_NETWORK
from nnunet_ssp.timm_unet import create
from nnunet_ssp.training.handover import TIMM
from nnunet_ssp.training.transfer import Pretrained

# Where projects keep the weights in a file, and what they put before the names of the encoder's tensors. The first that
# fits counts: of BYOL the teacher, which Kalapos and Gyires-Tóth transfer, of MoCo the encoder of the queries.
HOLDERS = (
    "state_dict",
    "model",
    "teacher",
    "network_weights",
    "target_network_state_dict",
    "online_network_state_dict",
    "encoder_state_dict",
    "online_backbone",
)
PREFIXES = {
    "": "timm, torchvision",
    "momentum_backbone.": "BYOL, MoCo v2+ of solo-learn (the teacher)",
    "backbone_momentum.": "BYOL, MoCo of lightly (the teacher)",
    "backbone.": "BYOL of solo-learn and lightly, DINO",
    "encoder_q.": "MoCo v1, v2",
    "base_encoder.": "MoCo v3",
    "momentum_encoder.": "MoCo v3, solo-learn before 1.0.6 (the teacher)",
    "target_network.encoder.": "BYOL of yaox12/BYOL-PyTorch (the teacher)",
    "online_network.encoder.": "BYOL of yaox12/BYOL-PyTorch",
    "target_encoder.net.": "BYOL of lucidrains/byol-pytorch (the teacher)",
    "online_encoder.net.": "BYOL of lucidrains/byol-pytorch",
    "encoder.": "BYOL of sthalles/PyTorch-BYOL, an encoder",
    "encoder.model.": "a checkpoint of these plans",
}
WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into names


def read_encoder(
    file: str, configuration: Mapping[str, Any], plans_name: str, trust: bool = False
) -> Pretrained:
    """Read the weights of a timm encoder as a file to start from.

    Args:
        file: The file; empty for the weights in timm's cache.
        configuration: Resolved configuration of the plans, which name the model.
        plans_name: Their name, for messages.
        trust: Whether to run code that the file asks for, see `checkpoints.load`.

    Raises:
        FileNotFoundError: There is no such file, or nothing in the cache; says where to put it.
        ValueError: The plans have no encoder of timm, or the file is not of this model.
    """
    architecture = configuration.get("architecture", {})
    if architecture.get("network_class_name") != OWN_NETWORK:
        raise ValueError(
            f"-pretrained_weights {TIMM}{file} must come with plans whose encoder is timm's, made by nnunet-ssp "
            f"prepare -pl TimmPlanner; {plans_name} has another network."
        )
    model = architecture["arch_kwargs"]["model"]
    path = Path(file) if file else cached_weights(model)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: -pretrained_weights {TIMM}FILE names it.")
    weights = loaded(model, read_state(path, trust), path)
    return Pretrained(path, weights, {"trainer": f"{TIMM}{model}"}, {}, "")


def cached_weights(model: str) -> Path:
    """Find the pretrained weights of a model in timm's cache.

    Args:
        model: Its name, perhaps with a tag: `resnet50.a1_in1k`.

    Raises:
        FileNotFoundError: They are not there; says where to put them.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(model)
    hub = getattr(config, "hf_hub_id", None)
    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(hub, name) if hub else None
        if isinstance(found, str):
            return Path(found)
    url = str(getattr(config, "url", "") or "")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if url and (folder / os.path.basename(url)).is_file():
        return folder / os.path.basename(url)
    raise FileNotFoundError(
        f"timm's cache has no pretrained weights of {model} ({hub or url or 'which timm has none of'}). Where there is "
        f"a network, python -c \"import timm; timm.create_model('{model}', pretrained=True)\" puts them into "
        f"{constants.HF_HUB_CACHE}, which may be copied. Or name a file: -pretrained_weights {TIMM}FILE."
    )


def read_state(file: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read a file of weights without running code that it may hold.

    Raises:
        ValueError: It holds no tensors by name, or would run code.
    """
    content = (
        read_shared(file)["network_weights"]
        if file.suffix == ENDING
        else checkpoints.open_weights(file, trust)
    )
    for holder in HOLDERS:
        if isinstance(content, dict) and isinstance(content.get(holder), dict):
            content = content[holder]
            break
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(key): value for key, value in tensors if isinstance(value, Tensor)}
    if not state:
        raise ValueError(
            f"{file} must hold tensors by name, alone or as {', '.join(HOLDERS)}; it holds none."
        )
    return state


def loaded(model: str, state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Put a state dict into a model of timm, and return the encoder's tensors by the names of `TimmUNet`.

    Names are the model's, or begin with the place of a child in it: BYOL in PyTorch keeps `nn.Sequential` of a ResNet's
    children, where `0.weight` is `conv1.weight`, and `4` is `layer1`. A converted file of BYOL's authors has names of
    its own; where none is known, all tensors must follow the model's in order and shape.

    Raises:
        ValueError: A tensor of the encoder is missing or of another shape; names the first ones.
    """
    base = model.partition(".")[0]
    with torch.device("meta"):
        whole, features = create(base), create(base, features_only=True)
    first = f"{whole.default_cfg.get('first_conv')}.weight"
    head = whole.default_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
    kept = {_flat(key) for key in features.state_dict()}
    encoder = {
        key: tuple(tensor.shape)
        for key, tensor in whole.state_dict().items()
        if _flat(key) in kept and not key.startswith(heads)
    }
    wanted = {key: shape for key, shape in encoder.items() if not key.endswith("batches_tracked")}
    children = [name for name, _ in whole.named_children()]
    by_prefix = [_named(state, prefix, children) for prefix in PREFIXES]
    own = max(by_prefix, key=lambda named: len(wanted.keys() & named))  # the first of the best
    if not wanted.keys() & own:
        own = _in_order(state, encoder) or own
    channels = own[first].shape[1] if first in own and own[first].ndim == 4 else 3
    if first in wanted:
        wanted[first] = (wanted[first][0], channels, *wanted[first][2:])
    if wrong := [k for k, shape in wanted.items() if k not in own or tuple(own[k].shape) != shape]:
        raise ValueError(
            f"{file} is not a {base} of timm: {len(wrong)} of {len(wanted)} tensors of the encoder are missing or of "
            f"another shape: {some(wrong)}. Names may begin with {', '.join(filter(None, PREFIXES))}."
        )
    import timm

    made = timm.create_model(
        base,
        pretrained=True,
        features_only=True,
        in_chans=channels,
        pretrained_cfg_overlay={"state_dict": {k: t.float() for k, t in own.items()}},
    )
    return {f"encoder.model.{key}": tensor for key, tensor in made.state_dict().items()}


def _named(state: Mapping[str, Tensor], prefix: str, children: Sequence[str]) -> dict[str, Tensor]:
    """Return what lies behind a prefix by the names of a model with these children."""
    found = {}
    for key, tensor in state.items():
        plain = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if plain.startswith(prefix):
            first, *others = plain.removeprefix(prefix).split(".")
            if first.isdigit() and int(first) < len(children):
                first = children[int(first)]
            found[".".join([first, *others])] = tensor
    return found


def _in_order(
    state: Mapping[str, Tensor], encoder: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the first tensors by the encoder's names; nothing if a shape differs."""
    found = dict(zip(encoder, state.values(), strict=False))
    fits = len(found) == len(encoder) and all(
        tuple(tensor.shape) == encoder[key] for key, tensor in found.items()
    )
    return found if fits else {}


def _flat(key: str) -> str:
    """Return a name as it is in a whole model and in one of features: `stages.0.x` there is `stages_0.x` here."""
    return key.replace("_", ".")
