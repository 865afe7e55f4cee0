"""PN-SAMP in PyTorch, for comparison: the network of `pnsamp_jax/models/pn_samp.py` and its training step.

It is written for speed: channels last in memory, autocast for bfloat16, and `torch.compile` in one of the two systems.
"""

from collections.abc import Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from experiments.speed.worker import System, host_peak, network_inputs
from pnsamp_jax.data import schema


def summarise(x: Tensor) -> Tensor:
    """Return mean and maximum over space: (B, C, D, H, W) -> (B, 2 C) float32."""
    x = x.float()
    return torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(2, 3, 4))], dim=1)


class PNSAMP(nn.Module):
    """The multi-task variant of PN-SAMP without dropout; the fields are those of the Flax module."""

    def __init__(
        self,
        channels: int,
        features: Sequence[int] = (16, 32, 64, 128),
        mask_features: Sequence[int] = (8, 16, 32, 64),
    ) -> None:
        super().__init__()
        joined = (*(2 * width for width in features[1:]), features[-1])  # with a skip, except at the bottom
        paths = {"down": (channels, *features), "up": joined, "mask": (1, *mask_features)}
        self.layers, self.levels, self.up_pool = nn.ModuleDict(), range(len(features)), nn.Upsample(scale_factor=2)
        for path, inputs in paths.items():
            for level, width in enumerate(mask_features if path == "mask" else features):
                self.layers[f"{path}_{level}_norm"] = nn.BatchNorm3d(inputs[level], momentum=0.1)  # 1 - Flax's
                self.layers[f"{path}_{level}_conv"] = nn.Conv3d(inputs[level], width, 3, padding=1)
        self.layers["mask_up"] = nn.Conv3d(features[0], 1, 1, bias=False)
        self.layers["mask_skip"] = nn.Conv3d(features[0], 1, 1)
        nn.init.constant_(self.layers["mask_skip"].bias, -4.0)  # MASK_PRIOR
        self.layers["fusion"] = nn.Linear(2 * (features[-1] + mask_features[-1]), 192)
        for index, rating in enumerate(schema.RATINGS):
            self.layers[f"{rating.name}_features"] = nn.Linear(192 + (rating.name == "malignancy") * 24 * index, 24)
            self.layers[rating.name] = nn.Linear(24, rating.classes)

    def block(self, x: Tensor, name: str) -> Tensor:
        """Apply BatchNorm, Conv 3x3x3 and ELU: (B, C, D, H, W) -> (B, features, D, H, W)."""
        return functional.elu(self.layers[f"{name}_conv"](self.layers[f"{name}_norm"](x)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return float32 logits: `mask` (B, D, H, W), and by name (B, classes) of each rating.

        Args:
          x: (B, windows, D, H, W) in 0..1.
        """
        skips = []
        for level in self.levels:
            skips.append(self.block(x, f"down_{level}"))
            x = functional.max_pool3d(skips[-1], 2)
        summaries = [summarise(x)]
        for level in self.levels[:0:-1]:
            x = torch.cat([self.up_pool(self.block(x, f"up_{level}")), skips[level]], dim=1)
        of_up = self.up_pool(self.layers["mask_up"](self.block(x, "up_0")))
        # As in Flax, the largest maps are not concatenated.
        mask = (of_up + self.layers["mask_skip"](skips[0])).float()
        y = torch.sigmoid(mask)
        for level in self.levels:
            y = functional.max_pool3d(self.block(y, f"mask_{level}"), 2)
        summaries.append(summarise(y))
        fused = functional.elu(self.layers["fusion"](torch.cat(summaries, dim=1)))
        attributes: list[Tensor] = []
        outputs = {"mask": mask[:, 0]}
        for name in schema.RATING_NAMES:
            inputs = torch.cat([fused, *attributes], dim=1) if name == "malignancy" else fused
            attributes.append(functional.elu(self.layers[f"{name}_features"](inputs)))
            outputs[name] = self.layers[name](attributes[-1]).float()
        return outputs


def combined_loss(outputs: dict[str, Tensor], mask: Tensor, classes: Tensor, weights: dict[str, float]) -> Tensor:
    """Compute the mean over the batch of `losses.total`, for nodules with all ratings: () float32."""
    p, space = torch.sigmoid(outputs["mask"]), (1, 2, 3)
    dice = 1 - (2 * (p * mask).sum(space) + 1) / ((p * p + mask * mask).sum(space) + 1)  # 1 is EPSILON
    entropy = [functional.cross_entropy(outputs[name], classes[:, i]) for i, name in enumerate(schema.RATING_NAMES)]
    malignancy = entropy.pop(schema.MALIGNANCY)
    terms = {"segmentation": dice.mean(), "attributes": sum(entropy) / len(entropy), "malignancy": malignancy}
    return sum(weights[name] * term for name, term in terms.items())


def create(system: str, config: ConfigDict) -> System:
    """Create the system `torch` or `torch_compile`; for their parts see `jax_systems.create`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None  # a GPU is still computing when a call returns
    fields = {name: config.model[name] for name in ("features", "mask_features") if name in config.model}
    model = PNSAMP(len(config.model.windows), **fields).to(device, memory_format=torch.channels_last_3d)
    run = torch.compile(model, dynamic=False) if system == "torch_compile" else model
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
    patches, masks, classes = map(torch.from_numpy, network_inputs(config))
    patches = patches.permute(0, 4, 1, 2, 3)  # in memory the channels stay last
    inputs, masks, classes = patches.to(device), masks.to(device), classes.to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16")

    def train_step() -> None:
        model.train()
        with half:
            outputs = run(inputs)
        optimizer.zero_grad()
        combined_loss(outputs, masks, classes, config.loss).backward()
        optimizer.step()
        wait()

    @torch.inference_mode()
    def forward(inputs: Tensor) -> dict[str, Tensor]:
        model.eval()
        with half:
            outputs = run(inputs)
        wait()
        return outputs

    parts = {"train_step": train_step, "forward": lambda: forward(inputs)}
    parts["latency"] = lambda: [output.cpu() for output in forward(patches[:1].to(device)).values()]
    peak = torch.cuda.max_memory_allocated if device == "cuda" else host_peak
    return System({"name": system, "version": torch.__version__, "device": device}, parts, peak)
