"""Weights of another architecture, made to fit the planned 2D network: one table of rules, and a report of each tensor.

Tensors correspond by their place: side, level from the full resolution down, number of the convolution. So networks
with fewer or more stages, or of the other kind (plain or residual encoder), share what lies at the same place. Each
adapter in `ADAPTERS` may then change a tensor's shape. What still does not fit stays as the network was initialised.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnunet_ssp.console import count_of
from nnunet_ssp.network import in_encoder, is_alias, is_output_layer

TensorShape = tuple[int, ...]
# Place of a tensor: side, level from 0 at the full resolution, which layer, which tensor of it.
Place = tuple[str | int, ...]
FIRST: Place = ("encoder", 0, 0, "conv.weight")


@dataclass(frozen=True)
class Channels:
    """Names of the input channels; none where they are unknown.

    Attributes:
        theirs: Of the file, in order.
        ours: Of the network to fill.
    """

    theirs: Sequence[str] = ()
    ours: Sequence[str] = ()

    @property
    def shared(self) -> set[str]:
        """The names on both sides."""
        return set(self.theirs) & set(self.ours)


@dataclass(frozen=True)
class Fate:
    """What becomes of one tensor of the network.

    Attributes:
        key: Its name.
        shape: Its shape.
        kind: `moved` as it is, `adapted`, or `fresh`.
        how: What was changed, or why it is fresh.
    """

    key: str
    shape: TensorShape
    kind: str
    how: str = ""


@dataclass(frozen=True)
class Adaptation:
    """The tensors of a file that fit a network, and a report.

    Attributes:
        tensors: By the network's names, without aliases.
        fates: One for each tensor of the network.
        left_out: Trained tensors of the file that nothing in the network corresponds to.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    fates: list[Fate] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the encoder's parameters that come from the file."""
        sizes = {f.key: torch.Size(f.shape).numel() for f in self.fates if in_encoder(f.key)}
        filled = sum(size for key, size in sizes.items() if key in self.tensors)
        return filled / max(1, sum(sizes.values()))

    @property
    def summary(self) -> str:
        """Numbers of tensors by fate, and the share, in words."""
        kinds = Counter(fate.kind for fate in self.fates)
        numbers = ", ".join(f"{kinds[kind]} {kind}" for kind in ("moved", "adapted", "fresh"))
        return (
            f"{numbers}; {self.share:.0%} of the encoder's parameters come from the file, of which "
            f"{count_of(len(self.left_out), 'tensor')} are left out"
        )

    def table(self) -> list[str]:
        """Return one line for each tensor, of the network and left out of the file."""
        lines = [
            f"{fate.key}  {_words(fate.shape)}  {fate.kind}{': ' * bool(fate.how)}{fate.how}"
            for fate in self.fates
        ]
        return [*lines, *(f"{key}  left out of the file" for key in self.left_out)]


# -- the rules -------------------------------------------------------------------------------------

# Takes a file's tensor, the shape to fit, its place and the channels' names. Returns the changed tensor and what was
# done, or None if the rule has nothing to do.
Adapter = Callable[[Tensor, TensorShape, Place, Channels], tuple[Tensor, str] | None]


def flatten_slices(
    weight: Tensor, shape: TensorShape, place: Place, channels: Channels
) -> tuple[Tensor, str] | None:
    """Turn a 3D kernel into a 2D one.

    The sum over the slice axis gives, inside a volume that is the same in each slice, what the 3D kernel gives. A
    transposed convolution puts each part of its kernel into a slice of its own, so that their mean is taken.
    """
    if weight.ndim != 5 or len(shape) != 4:
        return None
    if place[0] == "up":
        return weight.mean(2), "mean over the slice axis"
    return weight.sum(2), "sum over the slice axis"


def fit_kernel(
    weight: Tensor, shape: TensorShape, place: Place, channels: Channels
) -> tuple[Tensor, str] | None:
    """Crop a kernel to its centre, or pad it with 0 around, which changes nothing in the output.

    Kernels of odd and even sides have no common centre. Those of transposed convolutions follow the stride.
    """
    theirs, ours = tuple(weight.shape[2:]), shape[2:]
    if weight.ndim != len(shape) or len(ours) < 2 or theirs == ours or place[0] == "up":
        return None
    if any((a - b) % 2 for a, b in zip(theirs, ours, strict=True)):
        return None
    margins = [(b - a) // 2 for a, b in zip(theirs, ours, strict=True)]
    # torch pads the last axis first, and a negative margin crops.
    sides = [margin for margin in reversed(margins) for _ in (0, 1)]
    done = [
        word
        for word, holds in (("cropped", min(margins) < 0), ("padded with 0", max(margins) > 0))
        if holds
    ]
    padded = torch.nn.functional.pad(weight, sides)
    return padded, f"kernel {_words(theirs)} {' and '.join(done)} to {_words(ours)}"


def name_channels(
    weight: Tensor, shape: TensorShape, place: Place, channels: Channels
) -> tuple[Tensor, str] | None:
    """Give each input channel the weights of the file's channel of that name; new ones begin at 0.

    The network then sees at first what the pretrained one saw. Without a name in common, or with a name that one side
    gives twice, `fit_channels` decides.
    """
    theirs, ours = list(channels.theirs), list(channels.ours)
    if place != FIRST or not channels.shared or theirs == ours:
        return None
    repeated = len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours)
    if repeated or (len(theirs), len(ours)) != (weight.shape[1], shape[1]):
        return None
    fitted = weight.new_zeros(weight.shape[0], len(ours), *weight.shape[2:])
    for number, name in enumerate(ours):
        if name in theirs:
            fitted[:, number] = weight[:, theirs.index(name)]
    new = [name for name in ours if name not in theirs]
    words = f"channels by name: {', '.join(n for n in ours if n in theirs)}"
    return fitted, words + (f"; {', '.join(new)} begin at 0" if new else "")


def fit_channels(
    weight: Tensor, shape: TensorShape, place: Place, channels: Channels
) -> tuple[Tensor, str] | None:
    """Fit the first layer to another number of input channels.

    Summed for one channel (Kalapos and Gyires-Tóth): a grey image gives what it gave three times over. Else the file's
    n channels are taken in turn for m, times n / m, so that the expected activation stays.
    """
    if place != FIRST or weight.shape[1] == shape[1]:
        return None
    theirs, ours = weight.shape[1], shape[1]
    if ours == 1:
        return weight.sum(1, keepdim=True), f"{theirs} input channels summed"
    taken = torch.arange(ours) % theirs
    words = f"{theirs} input channels taken in turn for {ours}, times {theirs}/{ours}"
    return weight[:, taken] * (theirs / ours), words


# In the order in which they are applied.
ADAPTERS: tuple[Adapter, ...] = (flatten_slices, fit_kernel, name_channels, fit_channels)


# -- which tensors correspond ----------------------------------------------------------------------


def places(keys: Sequence[str]) -> dict[Place, str]:
    """Return the tensors of a planned U-Net by their place, without aliases and output layers.

    >>> places(["encoder.stages.1.0.convs.0.norm.bias", "decoder.transpconvs.0.weight"])
    {('encoder', 1, 0, 'norm.bias'): 'encoder.stages.1.0.convs.0.norm.bias',
     ('up', 0, 'weight'): 'decoder.transpconvs.0.weight'}
    """
    names = [key for key in keys if not is_alias(key) and not is_output_layer(key)]
    stages = [int(m[1]) for key in names if (m := re.match(r"encoder\.stages\.(\d+)\.", key))]
    bottleneck = max(stages, default=0)
    found: dict[Place, str] = {}
    timm = (key for key in names if key.startswith("encoder.model.") and key.endswith(".weight"))
    if first := next(timm, ""):
        found[FIRST] = first
    for key in (name for name in names if name != first):
        found.setdefault(_place(key, bottleneck), key)
    return found


def _place(key: str, bottleneck: int) -> Place:
    if m := re.fullmatch(r"encoder\.stages\.(\d+)\.\d+\.convs\.(\d+)\.(.+)", key):
        return "encoder", int(m[1]), int(m[2]), m[3]
    if m := re.fullmatch(r"encoder\.stem\.convs\.(\d+)\.(.+)", key):
        return "encoder", 0, int(m[1]), m[2]
    if m := re.fullmatch(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv([12])\.(.+)", key):
        # Before the first stage lies the stem, which is a plain encoder's first convolution.
        number = 2 * int(m[2]) + int(m[3]) - 1 + (m[1] == "0")
        return "encoder", int(m[1]), number, m[4]
    if m := re.fullmatch(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(.+)", key):
        return "decoder", max(0, bottleneck - 1 - int(m[1])), int(m[2]), m[3]
    if m := re.fullmatch(r"decoder\.transpconvs\.(\d+)\.(.+)", key):
        return "up", max(0, bottleneck - 1 - int(m[1])), m[2]
    return (key,)


def adapt(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, TensorShape],
    fresh: set[str],
    channels: Channels,
    encoder_only: bool = False,
) -> Adaptation:
    """Fit a file's tensors to a network.

    Args:
        theirs: Tensors of the file.
        ours: Shapes of the network's tensors.
        fresh: Names of the file's tensors that were not trained.
        channels: Names of the input channels.
        encoder_only: Whether the decoder stays as it was initialised.
    """
    there, here = places(list(theirs)), places(list(ours))
    tensors: dict[str, Tensor] = {}
    fates = []
    used = set()
    for place, key in here.items():
        shape, source = tuple(ours[key]), there.get(place)
        if encoder_only and not in_encoder(key):
            fates.append(Fate(key, shape, "fresh", "the encoder alone is taken"))
        elif source is None:
            fates.append(Fate(key, shape, "fresh", "the file has none"))
        elif source in fresh:
            fates.append(Fate(key, shape, "fresh", "not trained in the file"))
        else:
            fitted, done = _fit(theirs[source], shape, place, channels)
            if tuple(fitted.shape) != shape:
                how = f"{_words(theirs[source].shape)} in the file"
                fates.append(Fate(key, shape, "fresh", how))
                continue
            used.add(source)
            tensors[key] = fitted
            kind = "adapted" if done else "moved"
            renamed = [f"from {source}"] if source != key else []
            fates.append(Fate(key, shape, kind, ", ".join([*renamed, *done])))
    fates += [
        Fate(key, tuple(shape), "fresh", "output layer")
        for key, shape in ours.items()
        if is_output_layer(key) and not is_alias(key)
    ]
    left_out = [key for key in there.values() if key not in used | fresh]
    return Adaptation(tensors, fates, left_out)


def _fit(
    weight: Tensor, shape: TensorShape, place: Place, channels: Channels
) -> tuple[Tensor, list[str]]:
    """Apply every rule in turn; return the tensor and what was done."""
    done = []
    for adapter in ADAPTERS:
        if changed := adapter(weight, shape, place, channels):
            weight, words = changed
            done.append(words)
    return weight, done


def _words(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "1"
