"""Encoders of timm from elsewhere: `-pretrained_weights timm:FILE`, or `timm:` alone for the weights in timm's cache.

A file is a state dict of the model that the plans name, of timm, of torchvision, or of a project of `PREFIXES`.
timm's own loader puts it into the model. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
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
HOLDERS = ("state_dict", "model", "teacher", "network_weights")
PREFIXES = {
    "": "timm, torchvision",
    "momentum_backbone.": "BYOL, MoCo v2+ of solo-learn (the teacher)",
    "backbone.": "BYOL of solo-learn and lightly, DINO",
    "module.encoder_q.": "MoCo v1, v2",
    "module.base_encoder.": "MoCo v3",
    "target_network.encoder.": "BYOL of BYOL-PyTorch (the teacher)",
    "online_network.encoder.": "BYOL of BYOL-PyTorch",
    "online_encoder.net.": "BYOL of byol-pytorch",
    "module.": "a model of DataParallel",
    "encoder.": "an encoder",
    "encoder.model.": "a checkpoint of these plans",
}


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
    wanted = {
        key: tuple(tensor.shape)
        for key, tensor in whole.state_dict().items()
        if _flat(key) in kept and not key.startswith(heads) and not key.endswith("batches_tracked")
    }
    fits = {prefix: sum(prefix + key in state for key in wanted) for prefix in PREFIXES}
    prefix = max(PREFIXES, key=lambda name: fits[name])  # the first of the best
    own = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
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


def _flat(key: str) -> str:
    """Return a name as it is in a whole model and in one of features: `stages.0.x` there is `stages_0.x` here."""
    return key.replace("_", ".")
