"""The shape of a Vision Transformer, and the named sizes (ViT, arXiv 2010.11929, Table 1; Ti, S: DeiT / AugReg)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.config import Config

# name -> (width, depth, mlp_width, heads). Ti, S: arXiv 2106.10270, Table 2; B, L, H: ViT, Table 1;
# g, G: arXiv 2106.04560.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


class ViTConfig(Config):
    """Everything that fixes the network's function, apart from its weights.

    Other implementations, with equal weights: timm has GELU exact; ``transformers`` has it exact and ``norm_epsilon``
    1e-12, if its config.json does not say otherwise; vision_transformer and big_vision have the values here.
    """

    family: ClassVar[str] = "vit"  # the row of registry.py; no field, so it is not stored

    image_size: int = Field(224, gt=0, description="pixels of a side; images are square here")
    patch_size: int = Field(16, gt=0)
    width: int = Field(768, gt=0)
    depth: int = Field(12, gt=0)
    mlp_width: int = Field(3072, gt=0)
    heads: int = Field(12, gt=0)
    num_classes: int = Field(0, ge=0, description="0: no head; a pretraining takes it from its dataset")
    pool: Literal["cls", "gap"] = "cls"
    position: Literal["learned", "sincos2d"] = "learned"
    position_std: float = Field(0.02, gt=0, description="0.02 in vision_transformer, 1/sqrt(width) in big_vision")
    pre_logits: int = Field(0, ge=0, description="width of the dense + tanh layer before the head; 0: none")
    dropout: float = Field(0.0, ge=0, lt=1, description="after every dense layer but q, k, v, and after positions")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the last block; the first has 0")
    gelu: Literal["tanh", "exact"] = Field("tanh", description="tanh in JAX code, exact in timm and transformers")
    head_bias: float = Field(0.0, description="-10 for sigmoid loss on ImageNet-21k and JFT")
    norm_epsilon: float = Field(1e-6, gt=0, description="of every LayerNorm: 1e-6 in JAX code and timm")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if self.position == "sincos2d" and self.width % 4:
            raise ValueError(f"sincos2d positions need a width divisible by 4, not {self.width}")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, the class token included."""
        return self.grid**2 + (self.pool == "cls")


def config_by_name(name: str, **changes: Any) -> ViTConfig:
    """The configuration called *name*, such as ``"B/16"``, with *changes* applied."""
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdigit():
        raise ValueError(f"no model {name!r}; sizes are {', '.join(SIZES)}, written like 'B/16'")
    width, depth, mlp_width, heads = SIZES[size]
    shape = {"width": width, "depth": depth, "mlp_width": mlp_width, "heads": heads, "patch_size": int(patch)}
    return ViTConfig.model_validate(shape | changes)
