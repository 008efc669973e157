"""Exchange with nnssl (Wald et al., OpenMind), which pretrains 3D networks for nnU-Net: its files read, ours marked.

nnssl's checkpoints have the weights under `network_weights`, and in `nnssl_adaptation_plan` which network they are of,
how its images were prepared, and where encoder and first layer lie. nnU-Net's development head looks for that entry,
and takes along `citations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunet_ssp.files.contents import COUNT, NAMES, TEXT, Rule, check, shown

PLAN, CITATIONS = "nnssl_adaptation_plan", "citations"
ENCODER = "encoder.stages"  # in the networks of nnU-Net
# Convolutional networks of nnssl whose parts lie where nnU-Net's do; the others are transformers.
NETWORKS = ("ResEncL", "NoSkipResEncL", "ResidualEncoderUNet", "PlainConvUNet")
_FIRST_CONFIGURATION = Rule(
    "names, with `configurations` that are names with names",
    lambda v: (
        NAMES.holds(v)
        and NAMES.holds(v.get("configurations"))
        and bool(v["configurations"])
        and all(map(NAMES.holds, v["configurations"].values()))
    ),
)
RULES = {
    "architecture_plans": Rule(
        "names, with text as `arch_class_name`",
        lambda v: NAMES.holds(v) and TEXT.holds(v.get("arch_class_name")),
    ),
    "pretrain_plan": _FIRST_CONFIGURATION,
    "pretrain_num_input_channels": COUNT,
    "key_to_encoder": TEXT,
}
PREPARED = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm")


def marks(
    network: nn.Module,
    plans: Mapping[str, Any],
    name: str,
    configuration: Mapping[str, Any],
    channels: int,
    papers: Sequence[str],
) -> dict[str, Any]:
    """Return the entries of a checkpoint by which it is recognised like one of nnssl.

    Args:
        network: The planned network.
        plans: Content of the plans file; its dataset's name stays out.
        name: Of the configuration.
        configuration: The configuration.
        channels: Number of input channels.
        papers: To cite.
    """
    if not hasattr(network, "key_to_encoder"):  # an architecture of the user's own
        return {}
    planned = configuration["architecture"]
    kept = ("image_reader_writer", "transpose_forward", "transpose_backward", "plans_name")
    encoder, stem, first = (
        getattr(network, key) for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj")
    )
    plan = {
        "architecture_plans": {
            "arch_class_name": planned["network_class_name"].rpartition(".")[2],
            "arch_kwargs": dict(planned["arch_kwargs"]),
            "arch_kwargs_requiring_import": list(planned["_kw_requires_import"]),
        },
        "pretrain_plan": {
            **{key: plans[key] for key in kept if key in plans},
            "configurations": {name: {key: configuration[key] for key in PREPARED}},
        },
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": list(configuration["patch_size"]),
        "key_to_encoder": encoder,
        "key_to_stem": stem,
        "keys_to_in_proj": list(first),
        "key_to_lpe": None,
    }
    return {PLAN: plan, CITATIONS: list(papers)}


def is_nnssl(content: Mapping[str, Any]) -> bool:
    """Whether the content of a checkpoint is nnssl's; ours has a record of its own."""
    return PLAN in content and "ssp" not in content


def weights_of(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Return the weights of a file of nnssl under nnU-Net's names.

    Raises:
        ValueError: The plan is damaged, or the network is none of `NETWORKS`.
    """
    plan = _plan(content, file)
    network, encoder = plan["architecture_plans"]["arch_class_name"], plan["key_to_encoder"]
    if network.rpartition(".")[2] not in NETWORKS or not encoder.endswith(ENCODER):
        raise ValueError(
            f"{file} is a checkpoint of nnssl with the network {shown(network)}, whose encoder is "
            f"{shown(encoder)}: only its convolutional networks ({', '.join(NETWORKS)}) fit nnU-Net's planned ones."
        )
    before = encoder.removesuffix(ENCODER)  # of a network within another
    return {
        key.removeprefix(before): tensor
        for key, tensor in content["network_weights"].items()
        if key.startswith(before)
    }


def plans_of(content: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], str]:
    """Return how the images of a file of nnssl were prepared, as plans, and the name of the configuration."""
    configurations = _plan(content, file)["pretrain_plan"]["configurations"]
    name = next(iter(configurations))
    found = {
        key: configurations[name][key]
        for key in PREPARED
        if configurations[name].get(key) is not None
    }
    if isinstance(found.get("use_mask_for_norm"), bool):  # one value for all channels
        found["use_mask_for_norm"] = [found["use_mask_for_norm"]] * len(
            found.get("normalization_schemes", [0])
        )
    return {"configurations": {name: found}}, name


def origin_in_words(content: Mapping[str, Any], file: Path) -> str:
    """Say what a file of nnssl is."""
    plan = _plan(content, file)
    network = shown(plan["architecture_plans"]["arch_class_name"])
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    spacing = configuration.get("spacing")
    resampled = "without resampling" if spacing is None else f"at a spacing of {shown(spacing)} mm"
    return f"a checkpoint of nnssl: {network}, pretrained {resampled}"


def _plan(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    check({PLAN: content[PLAN]}, {PLAN: NAMES}, str(file))
    check(content[PLAN], RULES, f"{file}, `{PLAN}`", tuple(RULES))
    plan: dict[str, Any] = content[PLAN]
    return plan
