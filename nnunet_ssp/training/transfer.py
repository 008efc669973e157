"""The pretrained file: stock nnU-Net can read it, and we report every tensor that is loaded from it.

`network_weights` holds the whole planned network under nnU-Net's own names. Tensors that pretraining trained are
float32. The others are freshly initialised and stored in float16; by this `keep_own_fresh` knows where a fine-tuning
network keeps its own seeded initialisation. nnU-Net's decoder also holds the encoder (`decoder.encoder.*`) and blocks
hold aliases (`...all_modules.*`); aliases share storage, dtype and origin.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssp.console import count_of
from nnunet_ssp.files import checkpoints
from nnunet_ssp.files.bundles import DRAWN
from nnunet_ssp.files.contents import shown
from nnunet_ssp.files.names import is_plain
from nnunet_ssp.files.nnunet import NATURAL, resolve
from nnunet_ssp.launch import moving_command
from nnunet_ssp.network import in_encoder, is_alias, is_output_layer, parts
from nnunet_ssp.nnunet import has_tilde
from nnunet_ssp.training import interchange, snapshots
from nnunet_ssp.training.adapters import Adaptation, Channels, adapt
from nnunet_ssp.training.foreign import name_foreign


def pretrained_weights(network: nn.Module, transfers: str, num_classes: int) -> dict[str, Tensor]:
    """Return a pretrained network's state for a file, see `as_stored`.

    Args:
        network: The planned network that was pretrained.
        transfers: Trained part, `"encoder"` or `"encoder+decoder"`.
        num_classes: Number of channels of the fresh output layers.
    """
    whole = transfers == "encoder+decoder"
    trained = [key for key in network.state_dict() if whole or key.startswith("encoder.")]
    return as_stored(network, trained, num_classes)


def as_stored(network: nn.Module, trained: Iterable[str], num_classes: int) -> dict[str, Tensor]:
    """Return a network's state for a file: on the CPU, trained tensors in float32, fresh ones in float16.

    Each storage is converted once.

    Args:
        network: A planned network.
        trained: Names of its trained tensors, each at least once.
        num_classes: Number of channels of the fresh output layers.
    """
    state = network.state_dict()
    places = {state[key].data_ptr() for key in trained}
    converted: dict[int, Tensor] = {}
    for key, tensor in state.items():
        if is_output_layer(key) or tensor.data_ptr() in converted:
            continue
        copy = tensor.detach().cpu()
        if tensor.is_floating_point():
            copy = copy.to(torch.float32 if tensor.data_ptr() in places else torch.float16)
        converted[tensor.data_ptr()] = copy
    fresh = _fresh_output_layers(network, num_classes)
    return {k: fresh[k] if k in fresh else converted[t.data_ptr()] for k, t in state.items()}


def _fresh_output_layers(network: nn.Module, num_classes: int) -> dict[str, Tensor]:
    """Return output layers as nnU-Net initialises them (He, bias 0), by their names in the network."""
    fresh: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # writing a file must not change the run
        for name, layer in network.named_modules():
            if is_output_layer(f"{name}.") and isinstance(layer, nn.Conv2d):
                weight = torch.empty(num_classes, layer.in_channels, *layer.kernel_size)
                fresh[f"{name}.weight"] = nn.init.kaiming_normal_(weight, a=1e-2).half()
                fresh[f"{name}.bias"] = torch.zeros(num_classes, dtype=torch.float16)
    return fresh


def to_builtin(value: Any) -> Any:
    """Replace numpy's numbers, paths and devices by builtins, so that `weights_only=True` reads the file."""
    if isinstance(value, Mapping):
        return {k if isinstance(k, int) else str(k): to_builtin(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_builtin(v) for v in value]
    if isinstance(value, str):
        return str(value)  # numpy's strings are a subclass of str
    if value is None or isinstance(value, bool | Tensor):
        return value
    if isinstance(value, int | float) and type(value) in (int, float):
        return value
    if hasattr(value, "tolist"):  # numpy arrays and numbers
        return to_builtin(value.tolist())
    return str(value)


def to_cpu(value: Any, moved: dict[Any, Tensor] | None = None) -> Any:
    """Move every tensor of a nested state to the CPU; two names of one tensor still share it.

    Args:
        value: Tensors in mappings and lists.
        moved: Tensors moved already, for the recursion.
    """
    moved = {} if moved is None else moved
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if key not in moved:
            moved[key] = value.detach().cpu()
        return moved[key]
    if isinstance(value, Mapping):
        return {k: to_cpu(v, moved) for k, v in value.items()}
    return [to_cpu(v, moved) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint to start from.

    Attributes:
        file: Path of the checkpoint.
        weights: Tensors by nnU-Net's names.
        ssp: Record of our trainers; empty for a plain nnU-Net checkpoint.
        plans: Plans of the network, when the file holds them.
        configuration: Name of its configuration, when the file holds it.
        channels: Names of its input channels, when the file holds them.
        state: What the method of a pretraining needs besides the network, see `Method.extra_state`.
        epochs: Finished epochs of its training, when the file holds their number.
        drawn: Names of the tensors that the file does not store, which were drawn on reading.
        origin: What a file without a record of ours is, in words.
    """

    file: Path
    weights: dict[str, Tensor]
    ssp: dict[str, Any]
    plans: dict[str, Any]
    configuration: str
    channels: tuple[str, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    drawn: frozenset[str] = frozenset()
    origin: str = "a plain nnU-Net checkpoint"

    @property
    def encoder_alone(self) -> bool:
        """Whether the file holds no decoder, as snapshots of methods that train the encoder alone."""
        return all(in_encoder(key) for key in self.weights)


def fresh_keys(weights: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of the tensors that pretraining did not train: float16 beside float32.

    A BatchNorm's `num_batches_tracked`, an integer, is fresh if its statistics are. A file without any float32 tensor
    outside the output layers is another's half-precision file, all of which counts as trained.
    """
    body = {k: t.dtype for k, t in weights.items() if not is_output_layer(k)}
    if torch.float32 not in body.values():
        return set()
    return {
        key
        for key in body
        if body.get(key.replace("num_batches_tracked", "running_mean")) == torch.float16
    }


def read(file: str | Path, trust: bool = False) -> Pretrained:
    """Open a checkpoint of ours, of nnU-Net or of nnssl.

    Args:
        file: The checkpoint.
        trust: Whether to run code that the file asks for, see `checkpoints.load`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a checkpoint of nnU-Net's form, or would run code.
    """
    file = Path(file)
    if not file.exists():
        said = snapshots.hint(file)
        if has_tilde(str(file)):
            said = f" In quotes ~ is a folder of that name: {shlex.quote(os.path.expanduser(file))}"
        if said:
            raise FileNotFoundError(f"Checkpoint {file} does not exist.{said}")
    if file.is_file() and (foreign := name_foreign(file)):
        raise ValueError(f"{file} is {foreign}.")
    content = checkpoints.load(file, trust)
    if interchange.is_nnssl(content):
        weights = interchange.weights_of(content, file)
        origin = interchange.origin_in_words(content, file)
        plans, name = interchange.plans_of(content, file)
        return Pretrained(file, weights, {}, plans, name, origin=origin)
    arguments = content.get("init_args", {})
    return Pretrained(
        file,
        content["network_weights"],
        content.get("ssp", {}),
        arguments.get("plans", {}),
        arguments.get("configuration", ""),
        channel_names(arguments.get("dataset_json", {})),
        content.get("ssp_state", {}).get("method", {}),
        content.get("current_epoch"),
        frozenset(content.get(DRAWN, ())),
    )


def channel_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the input channels in order, none where `dataset.json` does not give them."""
    names = dataset_json.get("channel_names", dataset_json.get("modality"))
    return tuple(map(str, names.values())) if isinstance(names, Mapping) else ()


@dataclass(frozen=True)
class Comparison:
    """Fit of a pretrained file to a network and its plans.

    Attributes:
        table: One line per part of the network.
        refusals: Reasons why the file must not be used as it is.
        notes: Differences that do no harm.
        adaptable: Whether `adapt=yes` may help.
        remedy: Sentence on how this dataset gets the file's plans, with a blank before it; empty where that is no help.
    """

    table: list[str]
    refusals: list[str]
    notes: list[str]
    adaptable: bool = True
    remedy: str = ""


def compare(
    pretrained: Pretrained,
    network: nn.Module,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    channels: Sequence[str] = (),
) -> Comparison:
    """Compare a pretrained file with the network and plans of a dataset.

    Architecture, input channels, spacing and normalisation must agree; patch size, batch size, dataset and intensity
    statistics may differ.

    Args:
        pretrained: The file.
        network: The planned segmentation network.
        plans: Content of the dataset's plans file.
        configuration: Resolved configuration of these plans.
        channels: Names of the dataset's input channels; none where they are unknown.
    """
    own, theirs = _shapes(network.state_dict()), _shapes(pretrained.weights)
    whole = own
    if pretrained.encoder_alone:
        own = {key: shape for key, shape in own.items() if in_encoder(key)}
    wrong = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key)]
    refusals = []
    if (dimension := _dimension(theirs)) != _dimension(own):
        refusals.append(f"dimension: pretrained in {dimension}, these plans are {_dimension(own)}")
    first, their_first = _first_convolution(own), _first_convolution(theirs)
    if first and first == their_first and theirs[first][1] != own[first][1]:
        refusals.append(
            f"channels: pretrained with {count_of(theirs[first][1], 'input channel')}, these plans have {own[first][1]}"
        )
        wrong.remove(first)
    if wrong:
        refusals.append(
            f"architecture: {len(wrong)} of {len(own)} tensors differ, the first is {wrong[0]}: "
            f"{_words(theirs.get(wrong[0]))} in the file, {_words(own.get(wrong[0]))} in this network"
        )
    if spoiled := checkpoints.non_finite(pretrained.weights):
        refusals.append(
            f"values: {checkpoints.non_finite_in_words(spoiled, len(pretrained.weights))}"
        )
    their_configuration = _configuration(pretrained)
    notes = [] if pretrained.ssp else [f"{pretrained.origin}, not one of nnunet-ssp"]
    _compare_preparation(pretrained, plans, configuration, refusals, notes)
    if not their_configuration:
        notes.append("the file holds no plans: spacing and normalisation could not be compared")
    if set(pretrained.channels) & set(channels) and pretrained.channels != tuple(channels):
        notes.append(
            f"channels: pretrained with {shown(', '.join(pretrained.channels))}, here {', '.join(channels)}; a file "
            "that fits is taken in its own order"
        )
    for name in ("patch_size", "batch_size"):
        if name in their_configuration:
            there, here = their_configuration[name], configuration[name]
            if not _equal(there, here):
                notes.append(f"{_NAMES[name]}: pretrained {shown(there)}, here {here}")
    pretrained_on = pretrained.plans.get("dataset_name")  # a stripped file does not say
    if pretrained_on not in (None, plans.get("dataset_name")):
        notes.append(f"pretrained on {shown(pretrained_on)}")
    statistics = "foreground_intensity_properties_per_channel"
    if pretrained.plans and pretrained.plans.get(statistics) != plans.get(statistics):
        notes.append("intensity statistics of the datasets differ")
    spared = [refusal for refusal in refusals if refusal.startswith(_OF_PLANS)]
    remedy = _remedy(pretrained, plans) if spared and _dimension(theirs) == _dimension(own) else ""
    return Comparison(_table(pretrained, whole, set(wrong)), refusals, notes, not spoiled, remedy)


def _remedy(pretrained: Pretrained, plans: Mapping[str, Any]) -> str:
    """Say how a dataset gets the plans of a file; nothing where its dataset is not known or has no spacing in mm."""
    theirs, own = (each.get("dataset_name") for each in (pretrained.plans, plans))
    name = pretrained.plans.get("plans_name")
    ids = [dataset_number(each) for each in (theirs, own)]
    if None in ids or not is_plain(name) or NATURAL in (_reader(pretrained.plans), _reader(plans)):
        return ""
    if theirs == own:
        same = name == plans.get("plans_name")
        return "" if same else f" Its plans are {name} of {own}: -p {shlex.quote(str(name))}."
    command, moved = moving_command(ids[1] or 0, ids[0] or 0, str(name), pretrained.configuration)
    return f" For its own plans, those of {theirs}: {command}; then train with -p {shlex.quote(moved)}."


def dataset_number(name: object) -> int | None:
    """Return the id in the name of a dataset; None for what is no such name.

    >>> dataset_number("Dataset027_ACDC"), dataset_number(None)
    (27, None)
    """
    named = is_plain(name) and re.fullmatch(r"Dataset(\d{3})_.+", str(name))
    return int(named[1]) if named else None


def adapted(
    pretrained: Pretrained, network: nn.Module, dataset_json: Mapping[str, Any], encoder_only: bool
) -> Adaptation:
    """Fit a file's trained tensors to a network by the rules of `adapters`.

    Args:
        pretrained: The file.
        network: The planned network.
        dataset_json: Content of the dataset's `dataset.json`, for the names of the channels.
        encoder_only: Whether the decoder stays as it was initialised.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    channels = Channels(pretrained.channels, channel_names(dataset_json))
    weights = pretrained.weights
    return adapt(weights, shapes, fresh_keys(weights), channels, encoder_only)


_OF_PLANS = (
    "architecture",
    "spacing",
    "normalisation",
)  # refusals that the file's plans would spare
_NAMES = {
    "spacing": "spacing",
    "normalization_schemes": "normalisation",
    "use_mask_for_norm": "normalisation within the non-zero mask",
    "patch_size": "patch size",
    "batch_size": "batch size",
}


def _configuration(pretrained: Pretrained) -> dict[str, Any]:
    if pretrained.configuration not in pretrained.plans.get("configurations", {}):
        return {}
    return resolve(pretrained.plans, pretrained.configuration, f"{pretrained.file}, plans")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float | int) and isinstance(b, float | int):
        return abs(a - b) <= 1e-3 * max(abs(a), abs(b))
    return bool(a == b)


def _reader(plans: Mapping[str, Any]) -> Any:
    return plans.get("image_reader_writer")


def _compare_preparation(
    pretrained: Pretrained,
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    refusals: list[str],
    notes: list[str],
) -> None:
    """Compare how images were prepared; add what may not differ to the refusals, the rest to the notes."""
    their_configuration = _configuration(pretrained)
    natural = NATURAL in (_reader(pretrained.plans), _reader(plans))
    for name in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        if name not in their_configuration:
            continue
        there, here = their_configuration[name], configuration[name]
        by_channel = name != "spacing"
        if _equal(*(_for_each_channel(there, here) if by_channel else (there, here))):
            continue
        if natural and not by_channel:
            notes.append(
                f"spacing: {shown(there)} there, {here} here; natural images have none in mm, so that pixels "
                "count as pixels"
            )
        else:
            refusals.append(
                f"{_NAMES[name]}: pretrained with {shown(there)}, these plans have {here}"
            )


def _for_each_channel(there: Any, here: Any) -> tuple[Any, Any]:
    """Return lists of one value for all channels at one length; the number of channels is compared by itself."""
    lists = [v for v in (there, here) if isinstance(v, list) and v and all(x == v[0] for x in v)]
    return (there[:1], here[:1]) if len(lists) == 2 and len(there) != len(here) else (there, here)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return shapes by name, without aliases and output layers."""
    return {
        key: tuple(tensor.shape)
        for key, tensor in state.items()
        if not is_alias(key) and not is_output_layer(key)
    }


def _first_convolution(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return next((k for k, s in shapes.items() if k.startswith("encoder.") and len(s) > 3), "")


def _dimension(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return "3D" if any(len(shape) == 5 for shape in shapes.values()) else "2D"


def _words(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape))


def _table(pretrained: Pretrained, own: Mapping[str, Any], wrong: set[str]) -> list[str]:
    fresh = fresh_keys(pretrained.weights)
    if pretrained.encoder_alone:
        fresh |= {key for key in own if not in_encoder(key)}
    lines = []
    for part, keys in parts(own).items():
        fates = ["differs" if k in wrong else "fresh" if k in fresh else "pretrained" for k in keys]
        counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in dict.fromkeys(fates))
        lines.append(f"{part:12s} {counts}")
    return lines


def keep_own_fresh(network: nn.Module, choose: Callable[[set[str]], set[str]]) -> None:
    """Make a network keep chosen tensors of its own, above all where a pretrained file holds only fresh ones.

    This registers a `load_state_dict` pre-hook, which also serves stock nnU-Net's `-pretrained_weights`.

    Args:
        network: The planned segmentation network.
        choose: Called with the keys of the fresh tensors of each state dict that is loaded; returns the keys whose
            tensors the network keeps.
    """

    def hook(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        if prefix:
            return
        own = module.state_dict()
        for key in choose(fresh_keys(state)) & own.keys():
            state[key] = own[key]

    network.register_load_state_dict_pre_hook(hook)


def moved(own: Mapping[str, Tensor], fresh: set[str]) -> str:
    """Return `encoder 40 tensors, decoder 26, fresh 10`: each storage counts once, output layers are fresh."""
    counts = {"encoder": 0, "decoder": 0, "fresh": 0}
    seen: set[int] = set()
    for key, tensor in own.items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        side = "encoder" if in_encoder(key) else "decoder"
        counts["fresh" if key in fresh or is_output_layer(key) else side] += 1
    return (
        f"encoder {counts['encoder']} tensors, decoder {counts['decoder']}, fresh {counts['fresh']}"
    )
