"""Windows of attention: the rules of the families for how many tokens each block attends to."""

from __future__ import annotations

from collections.abc import Callable

from hpcq.catalog.model_config import ModelConfig

Window = Callable[[ModelConfig, int], int | None]
"""Returns how many tokens block `index` attends to; None: all."""

_OLD_NAMES = {"mamba": "linear_attention", "conv": "linear_attention", "attention": "full_attention"}


def layer_type(config: ModelConfig, index: int, default: str = "full_attention") -> str:
    """Return the kind of block `index`, in the names of transformers 5.17; `default`: that of a block without one."""
    kind = str(config.listed("layer_types", index) or default)
    return _OLD_NAMES.get(kind, kind)


def window(config: ModelConfig, index: int, *, is_default: bool, key: str = "sliding_window") -> int | None:
    """Return the window of block `index`.

    Args:
        config: The configuration.
        index: Index of the block.
        is_default: The block has a window unless `layer_types` lists it otherwise.
        key: Key of the number of tokens.
    """
    kind = layer_type(config, index, "sliding_attention" if is_default else "full_attention")
    return config.size(key) if kind in ("sliding_attention", "chunked_attention") and config.get(key) else None


def no_window(_config: ModelConfig, _index: int) -> None:
    """Every block attends to everything."""


def listed(config: ModelConfig, index: int) -> int | None:
    """All blocks have the same window, if any, unless they are listed otherwise (Ministral)."""
    return window(config, index, is_default=True)


def everywhere(config: ModelConfig, _index: int) -> int | None:
    """All blocks have the same window, if any."""
    return config.size("sliding_window") if config.get("sliding_window") else None


def everywhere_if_used(config: ModelConfig, index: int) -> int | None:
    """All blocks have the same window, if windows are used (Qwen3-MoE)."""
    return everywhere(config, index) if config.flag("use_sliding_window") else None


def every(pattern: str | int, default: int | None = None) -> Window:
    """One in `pattern` blocks attends to everything, the others have a window.

    Args:
        pattern: The number, or the key of the number.
        default: Its value if the key is absent.
    """

    def rule(config: ModelConfig, index: int) -> int | None:
        if not config.get("sliding_window"):
            return None
        step = config.size(pattern, default) if isinstance(pattern, str) else pattern
        return window(config, index, is_default=(index + 1) % step != 0)

    return rule


def all_but_every_fourth(config: ModelConfig, index: int) -> int | None:
    """The first of four blocks attends to everything (Code World Model)."""
    return window(config, index, is_default=index % 4 != 0)


def late(config: ModelConfig, index: int) -> int | None:
    """Blocks from `max_window_layers` on have a window (dots.llm1)."""
    return window(config, index, is_default=index >= config.count("max_window_layers"))


def late_if_used(config: ModelConfig, index: int) -> int | None:
    """Blocks from `max_window_layers` on have a window, if windows are used (Qwen2, Qwen3)."""
    return late(config, index) if config.flag("use_sliding_window") else None


def early_if_used(config: ModelConfig, index: int) -> int | None:
    """Every second block before `max_window_layers` has a window, if windows are used (Qwen2-MoE)."""
    if not config.flag("use_sliding_window"):
        return None
    return window(config, index, is_default=index % 2 == 0 and index < config.count("max_window_layers"))
