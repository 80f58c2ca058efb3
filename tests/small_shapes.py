"""A model of which every size differs, for counting operations."""

from vtscale_jax.fusion import FusionConfig
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig


def model_config(num_layers: int = 2, **more) -> ModelConfig:
    """Sizes all different, wide enough that products are nearly everything."""
    clip = {"activation": "quick_gelu", **more}
    return ModelConfig(
        VisionConfig(32, 4, BlockConfig(256, 1024, 4, num_layers, **clip)),
        FusionConfig(100, 15, BlockConfig(256, 768, 4, num_layers, **more)),
        LLMConfig(300, BlockConfig(320, 896, 5, num_layers, num_kv_heads=1, **more)),
        TextConfig(100, 32, 192, BlockConfig(192, 768, 3, num_layers, **clip)),
    )
