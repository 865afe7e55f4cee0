"""PN-SAMP in PyTorch, to compare with: the network of `pnsamp_jax/models/pn_samp.py` and its training step.

As one would write it for speed: channels last in memory, autocast for bfloat16, and in one form `torch.compile`.
"""

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from experiments.speed.worker import System, host_peak, seen
from pnsamp_jax.data import schema


def summarise(x: Tensor) -> Tensor:
    """Mean and maximum over space: (B, C, D, H, W) -> (B, 2 C) float32."""
    x = x.float()
    return torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(2, 3, 4))], dim=1)


class PNSAMP(nn.Module):
    """PN-SAMP in its multi-task form, without dropout; the fields are those of the Flax module."""

    def __init__(self, channels: int, features=(16, 32, 64, 128), mask_features=(8, 16, 32, 64)) -> None:
        super().__init__()
        joined = (*(2 * width for width in features[1:]), features[-1])  # with a skip, but at the bottom
        ways = {"down": (channels, *features), "up": joined, "mask": (1, *mask_features)}
        self.layers, self.levels, self.up_pool = nn.ModuleDict(), range(len(features)), nn.Upsample(scale_factor=2)
        for way, inputs in ways.items():
            for level, width in enumerate(mask_features if way == "mask" else features):
                self.layers[f"{way}_{level}_norm"] = nn.BatchNorm3d(inputs[level], momentum=0.1)  # one less Flax's
                self.layers[f"{way}_{level}_conv"] = nn.Conv3d(inputs[level], width, 3, padding=1)
        self.layers["mask_below"] = nn.Conv3d(features[0], 1, 1, bias=False)
        self.layers["mask_beside"] = nn.Conv3d(features[0], 1, 1)
        nn.init.constant_(self.layers["mask_beside"].bias, -4.0)  # MASK_PRIOR
        self.layers["fusion"] = nn.Linear(2 * (features[-1] + mask_features[-1]), 192)
        for place, (name, classes) in enumerate(schema.RATINGS):
            self.layers[f"{name}_features"] = nn.Linear(192 + (name == "malignancy") * 24 * place, 24)
            self.layers[name] = nn.Linear(24, classes)

    def block(self, x: Tensor, name: str) -> Tensor:
        """BatchNorm -> Conv 3x3x3 -> ELU: (B, C, D, H, W) -> (B, features, D, H, W)."""
        return functional.elu(self.layers[f"{name}_conv"](self.layers[f"{name}_norm"](x)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, windows, D, H, W) in 0..1 -> float32 logits: `mask` (B, D, H, W), and (B, classes) of each rating."""
        skips = []
        for level in self.levels:
            skips.append(self.block(x, f"down_{level}"))
            x = functional.max_pool3d(skips[-1], 2)
        summaries = [summarise(x)]
        for level in self.levels[:0:-1]:
            x = torch.cat([self.up_pool(self.block(x, f"up_{level}")), skips[level]], dim=1)
        below = self.up_pool(self.layers["mask_below"](self.block(x, "up_0")))
        mask = (below + self.layers["mask_beside"](skips[0])).float()  # as in Flax, the largest map is never joined
        y = torch.sigmoid(mask)
        for level in self.levels:
            y = functional.max_pool3d(self.block(y, f"mask_{level}"), 2)
        summaries.append(summarise(y))
        fused = functional.elu(self.layers["fusion"](torch.cat(summaries, dim=1)))
        attributes, outputs = [], {"mask": mask[:, 0]}
        for name in schema.RATING_NAMES:
            given = torch.cat([fused, *attributes], dim=1) if name == "malignancy" else fused
            attributes.append(functional.elu(self.layers[f"{name}_features"](given)))
            outputs[name] = self.layers[name](attributes[-1]).float()
        return outputs


def combined_loss(outputs: dict[str, Tensor], mask: Tensor, classes: Tensor, weights: dict[str, float]) -> Tensor:
    """The mean over the batch of `losses.total`, for nodules of which every rating is there: () float32."""
    p, space = torch.sigmoid(outputs["mask"]), (1, 2, 3)
    dice = 1 - (2 * (p * mask).sum(space) + 1) / ((p * p + mask * mask).sum(space) + 1)  # 1 is EPSILON
    entropy = [functional.cross_entropy(outputs[name], classes[:, i]) for i, name in enumerate(schema.RATING_NAMES)]
    malignancy = entropy.pop(schema.MALIGNANCY)
    terms = {"segmentation": dice.mean(), "attributes": sum(entropy) / len(entropy), "malignancy": malignancy}
    return sum(weights[name] * term for name, term in terms.items())


def create(system: str, config: ConfigDict) -> System:
    """`torch` or `torch_compile`; for the parts see `jax_systems.create`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None  # a GPU's result comes after the call
    fields = {name: config.model[name] for name in ("features", "mask_features") if name in config.model}
    model = PNSAMP(len(config.model.windows), **fields).to(device, memory_format=torch.channels_last_3d)
    run = torch.compile(model, dynamic=False) if system == "torch_compile" else model
    optimizer = torch.optim.Adam(model.parameters(), config.learning_rate, fused=True)
    patches, *truth = map(torch.from_numpy, seen(config))
    patches = patches.permute(0, 4, 1, 2, 3)  # in memory the channels stay last
    inputs, truth = patches.to(device), [tensor.to(device) for tensor in truth]
    half = torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16")

    def train_step() -> None:
        model.train()
        with half:
            outputs = run(inputs)
        optimizer.zero_grad()
        combined_loss(outputs, *truth, config.loss).backward()
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
