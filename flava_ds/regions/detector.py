"""A small detector: finds drawings by their centres, and describes each region by one vector.

The weights are frozen wherever others use it; `training.py` trains it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flava_ds.config import from_dict
from flava_ds.config.bounds import AtLeast, AtMost, Between, check_bounds
from flava_ds.config.encoders import DETECTORS
from flava_ds.config.plain_files import loads
from flava_ds.errors import CheckpointError, ConfigError, DataError, did_you_mean
from flava_ds.storage.tensor_files import save_tensors
from flava_ds.tensor_hash import hash_of_tensors

STRIDE = 8
"""Pixels of a cell of the feature map."""
METADATA_KEY = "detector_config"
NAMED = {name: Path(__file__).parents[1] / name / "detector.safetensors" for name in DETECTORS}
"""Detectors that the package contains, by name."""
Width = Annotated[int, AtLeast(1), AtMost(2**14)]
_RARE_CENTRES = -2.19
"""Initial logit of a centre, a probability of 0.1. Source: CenterNet, section 5; RetinaNet, section 4.1."""
_BINS, _SAMPLES = 3, 2
"""Bins of a region along an edge, and samples in a bin."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The shape of a detector, and what it keeps."""

    class_names: tuple[str, ...]
    """Classes that it tells apart."""
    image_size: Annotated[int, AtLeast(STRIDE), AtMost(2**12)] = 96
    """Edge in pixels to which it resizes pictures; a multiple of 8."""
    widths: tuple[Width, Width, Width] = (24, 32, 64)
    """Channels at strides 2, 4 and 8."""
    num_blocks: Annotated[int, AtLeast(0), AtMost(100)] = 4
    """Residual blocks at stride 8."""
    feature_size: Width = 64
    """Width of a region's features."""
    max_detections: Annotated[int, AtLeast(1), AtMost(1000)] = 8
    """Regions of a picture beside the whole."""
    least_score: Annotated[float, Between(0, 1)] = 0.1
    """A centre with a lower probability is no detection."""
    most_overlap: Annotated[float, Between(0, 1)] = 0.4
    """Of detections whose boxes have a larger intersection over union only the likeliest is kept."""
    tag_score: Annotated[float, Between(0, 1)] = 0.2
    """A class with a lower probability is no tag."""


@dataclass(frozen=True)
class Regions:
    """The regions of b pictures, laid end to end: of each picture the whole first, then detections, best
    first.

    Shapes:
        features    [O y]  fp32
        boxes       [O 4]  fp32: x1, y1, x2, y2 as shares of width and height
        classes     [O z]  fp32: probability that there is something, times that of each class; rows sum to
                           at most 1, those of whole pictures are 0
        cu_seqlens  [b+1]  int32
        max_seqlen  int    most regions of a picture
    """

    features: Tensor
    boxes: Tensor
    classes: Tensor
    cu_seqlens: Tensor
    max_seqlen: int


class Block(nn.Module):
    """Two convolutions with a residual connection: [b d h w] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_1, self.norm_1 = convolution(width, width, 1)
        self.conv_2, self.norm_2 = convolution(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.relu(self.norm_1(self.conv_1(hidden)))
        return F.relu(hidden + self.norm_2(self.conv_2(inner)))


def convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Returns a convolution of 3 x 3 without a bias, and its norm."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)


class Detector(nn.Module):
    """A convolutional net of stride 8 that scores each cell as the centre of something, with its box, and
    classifies what is in a box from the box's features.

    Source: Objects as Points (Zhou et al. 2019) for centres; Mask R-CNN (He et al. 2017) for RoIAlign.
    Probabilistic two-stage detection (Zhou et al. 2021) joins the two in this way.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        if not config.class_names:
            raise ConfigError("detector: class_names is empty; name at least one class")
        if config.image_size % STRIDE:
            raise ConfigError(
                f"detector: image_size {config.image_size} must be a multiple of {STRIDE}, the stride"
            )
        self.config = config
        first, second, last = config.widths
        self.conv_1, self.norm_1 = convolution(3, first, 2)
        self.conv_2, self.norm_2 = convolution(first, second, 2)
        self.block_2 = Block(second)
        self.conv_3, self.norm_3 = convolution(second, last, 2)
        self.blocks = nn.ModuleList(Block(last) for _ in range(config.num_blocks))
        self.center = nn.Conv2d(last, last, 3, padding=1)
        self.center_out = nn.Conv2d(last, 5, 1)
        self.region = nn.Linear(last * _BINS * _BINS, config.feature_size)
        self.region_norm = nn.LayerNorm(config.feature_size)
        self.classifier = nn.Linear(config.feature_size, len(config.class_names))
        self.center_out.bias = nn.Parameter(torch.tensor([_RARE_CENTRES, 0.0, 0.0, 0.0, 0.0]))
        layout: Any = {"memory_format": torch.channels_last}  # which some versions' stubs lack
        self.to(**layout)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of `Regions.classes`."""
        return self.config.class_names

    def fingerprint(self) -> str:
        """Hashes all that determines the regions of a picture."""
        return hash_of_tensors(self.state_dict(), self.config)

    def prepare(self, pixel_values: Tensor) -> Tensor:
        """Resizes whole pictures: [b c H W] uint8 -> [b c image_size image_size] fp32, white is 0, black 1.

        Raises: DataError for another shape or dtype.
        """
        shape, size = pixel_values.shape, self.config.image_size
        if pixel_values.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            raise DataError(
                f"the detector's pixels are {pixel_values.dtype} {list(shape)}; expected uint8 [b 3 H W]"
            )
        values = 1 - pixel_values.to(self.region.weight.device, self.region.weight.dtype) / 255
        if shape[2:] != (size, size):
            values = F.interpolate(values, size=(size, size), mode="bilinear", antialias=True)
        return values.contiguous(memory_format=torch.channels_last)

    def map(self, values: Tensor) -> Tensor:
        """Returns the feature map: [b c H W] -> [b d gh gw]."""
        hidden = F.relu(self.norm_1(self.conv_1(values)))
        hidden = self.block_2(F.relu(self.norm_2(self.conv_2(hidden))))
        hidden = F.relu(self.norm_3(self.conv_3(hidden)))
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def centers(self, hidden: Tensor) -> Tensor:
        """Returns for each cell the logit of a centre, the centre's offset from the middle of the cell in
        cells (x, y), and the logarithm of width and height as shares: [b d gh gw] -> [b 5 gh gw].
        """
        return self.center_out(F.relu(self.center(hidden)))

    def describe(self, hidden: Tensor, boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Describes boxes: [b d gh gw], [k 4] shares, [k] -> features [k y], logits of classes [k z]."""
        from torchvision.ops import roi_align  # loads triton

        grid = hidden.shape[-1]
        places = torch.cat([images[:, None].to(boxes.dtype), grid * boxes], 1)
        bins = roi_align(hidden, places.to(hidden.dtype), _BINS, 1.0, _SAMPLES, aligned=True)
        features = F.relu(self.region_norm(self.region(rearrange(bins, "k d y x -> k (y x d)"))))
        return features, self.classifier(features)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Regions:
        """Finds regions: [b c H W] uint8 -> Regions. Raises: DataError for another shape."""
        hidden = self.map(self.prepare(pixel_values))
        boxes, scores, images = self._found(self.centers(hidden).float())
        features, logits = self.describe(hidden, boxes, images)
        classes = scores[:, None] * logits.float().softmax(1)
        count = len(pixel_values)
        whole = boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]]).expand(count, 4)
        own = torch.arange(count, device=boxes.device)
        whole_features, _ = self.describe(hidden, whole, own)
        images, best = torch.cat([own, images]), torch.cat([scores.new_full((count,), 2), classes.amax(1)])
        by_score = best.argsort(descending=True, stable=True)
        order = by_score[images[by_score].argsort(stable=True)]
        counts = torch.bincount(images, minlength=count)
        return Regions(
            features=torch.cat([whole_features, features]).float()[order],
            boxes=torch.cat([whole, boxes])[order],
            classes=torch.cat([classes.new_zeros(count, classes.shape[1]), classes])[order],
            cu_seqlens=F.pad(counts.cumsum(0), (1, 0)).int(),
            max_seqlen=int(counts.max()) if count else 0,
        )

    def _found(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes [k 4], probabilities [k] and images [k] of the centres in [b 5 gh gw]."""
        from torchvision.ops import batched_nms

        count, _, height, width = cells.shape
        config, heat = self.config, cells[:, :1].sigmoid()
        peaks = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat >= config.least_score)
        images, _, rows, columns = peaks.nonzero(as_tuple=True)
        scores, kept = heat[images, 0, rows, columns], cells[images, :, rows, columns]
        middle = torch.stack([(columns + 0.5 + kept[:, 1]) / width, (rows + 0.5 + kept[:, 2]) / height], 1)
        half = kept[:, 3:].clamp(max=0.0).exp() / 2
        boxes = torch.cat([middle - half, middle + half], 1).clamp(0, 1)
        real = ((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(1).nonzero().flatten()
        boxes, scores, images = boxes[real], scores[real], images[real]
        chosen = batched_nms(boxes, scores, images, config.most_overlap)
        boxes, scores, images = boxes[chosen], scores[chosen], images[chosen]
        earlier = (images[:, None] == images[None, :]).tril(-1).sum(1)
        first = earlier < config.max_detections
        return boxes[first], scores[first], images[first]

    def tags(self, regions: Regions) -> list[str]:
        """Returns the words of each picture's classes, best first, each class once: b strings."""
        best, which = regions.classes.max(1)
        found, starts = [], regions.cu_seqlens.tolist()
        for start, stop in zip(starts, starts[1:], strict=False):
            rows = [row for row in range(start, stop) if best[row] >= self.config.tag_score]
            names = dict.fromkeys(self.class_names[int(which[row])] for row in rows)
            found.append(" ".join(name.replace("-", " ") for name in names))
        return found


def save_detector(detector: Detector, path: Path) -> None:
    """Writes weights in fp16 and the configuration into one safetensors file, atomically.

    Raises: CheckpointError when the file cannot be written.
    """
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in detector.state_dict().items()
    }
    metadata = {METADATA_KEY: json.dumps(dataclasses.asdict(detector.config))}
    save_tensors(tensors, path, metadata)


def weights_of(path_or_name: str | Path) -> Path:
    """Returns the file of a detector's weights. Raises: CheckpointError when it is missing."""
    file = NAMED.get(str(path_or_name), Path(path_or_name))
    if not file.is_file():
        known = ", ".join(f"'{name}'" for name in NAMED)
        hint = did_you_mean(str(path_or_name), NAMED)
        raise CheckpointError(
            f"{file}: no detector there{hint}; give a .safetensors file of `python -m "
            f"flava_ds.demo.detector`, or a name: {known}"
        )
    return file


def load_detector(path_or_name: str | Path) -> Detector:
    """Loads a detector from a file, or one of the package's by its name. It is frozen and in eval mode.

    Raises: CheckpointError when the file is missing, unreadable, or has other tensors than it says.
    """
    file = weights_of(path_or_name)
    tensors, config = _read(file)
    detector = Detector(config)
    expected = detector.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or tensors[name].shape != expected[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"{file}: {len(wrong)} tensors do not fit the detector that it describes, the first is "
            f"{wrong[0]}; train it again"
        )
    detector.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    return detector.requires_grad_(False).eval()


def _read(file: Path) -> tuple[dict[str, Tensor], DetectorConfig]:
    """Reads the tensors and the configuration. Raises: CheckpointError."""
    try:
        with safe_open(file, "pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        config = from_dict(DetectorConfig, loads(metadata[METADATA_KEY]))
        check_bounds(config, "detector")
        return tensors, config
    except (SafetensorError, OSError, KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{file}: not a detector's file ({type(error).__name__}: {error}); give one that `python -m "
            "flava_ds.demo.detector` wrote"
        ) from error
