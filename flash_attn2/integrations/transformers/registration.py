"""Where transformers is told of the adapter, and how that is taken back."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers import modeling_flash_attention_utils as flash_utils

import flash_attn2
from flash_attn2.integrations.transformers.attention import attention
from flash_attn2.integrations.transformers.masks import dense_configs, make_mask
from flash_attn2.integrations.transformers.patterns import MAKERS, rule_maker
from flash_attn2.integrations.transformers.versions import NAME

# What was there before, to be put back: object, name, value.
_replaced: list[tuple[Any, str, Any]] = []


def install() -> None:
    """Once; again changes nothing."""
    if _replaced:
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, make_mask)
    for name, kind in MAKERS.items():
        if not hasattr(masking_utils, name):
            continue  # of later releases
        _replace(masking_utils, name, partial(rule_maker, kind=kind))
    _replace(flash_utils, "_lazy_imports", _with_our_functions)
    _replace(PreTrainedModel, "_check_and_adjust_attn_implementation", _without_other_kernels)
    _replace(PreTrainedModel, "get_correct_attn_implementation", _as_it_is)
    _replace(PreTrainedModel, "set_attn_implementation", _for_all_parts)


def uninstall() -> None:
    if not _replaced:
        return
    for owner, name, value in reversed(_replaced):
        setattr(owner, name, value)
    _replaced.clear()
    del AttentionInterface._global_mapping[NAME]
    del AttentionMaskInterface._global_mapping[NAME]
    if flash_utils._loaded_implementation == NAME:
        flash_utils._loaded_implementation = None


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    value = getattr(owner, name)
    setattr(owner, name, wrap(value))
    _replaced.append((owner, name, value))


def _with_our_functions(lazy_imports: Callable[..., Any]) -> Callable[..., Any]:
    """A name with "flash" in it makes transformers look for functions of that name."""

    def import_functions(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        if implementation != NAME:
            return lazy_imports(implementation, *args, **kwargs)
        return (
            flash_attn2.flash_attn_func,
            flash_attn2.flash_attn_varlen_func,
            flash_attn2.flash_attn_with_kvcache,
            flash_utils._pad_input,
            flash_utils._unpad_input,
        )

    return import_functions


def _without_other_kernels(check: Callable[..., str]) -> Callable[..., str]:
    """Models with a list of the kernels they like would get one of those, with a warning."""

    def check_implementation(
        self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        if attn_implementation is None or attn_implementation.removeprefix("paged|") != NAME:
            return check(self, attn_implementation, *args, **kwargs)
        flash_utils.lazy_import_flash_attention(NAME)
        name: str = self.get_correct_attn_implementation(NAME)
        return name

    return check_implementation


def _as_it_is(get_correct: Callable[..., str]) -> Callable[..., str]:
    """Of a model or a part of one, whose configuration may choose for itself."""

    def get_correct_attn_implementation(
        self: Any, requested_attention: str | None, *args: Any, **kwargs: Any
    ) -> str:
        if requested_attention != NAME:
            return get_correct(self, requested_attention, *args, **kwargs)
        require_interface(type(self))
        if not self._supports_flash_attn:
            dense_configs.add(type(self.config))
        return NAME

    return get_correct_attn_implementation


def _for_all_parts(set_implementation: Callable[..., None]) -> Callable[..., None]:
    """Parts of a model that cannot change their attention would be left out, with a warning."""

    def set_attn_implementation(
        self: Any, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any
    ) -> None:
        if attn_implementation in (NAME, f"paged|{NAME}"):
            for part in self.modules():
                if isinstance(part, PreTrainedModel):
                    require_interface(type(part))
        set_implementation(self, attn_implementation, *args, **kwargs)

    return set_attn_implementation


def require_interface(model_class: type) -> None:
    """ValueError for a class whose layers compute attention themselves, whatever is chosen."""
    if uses_interface(model_class):
        return
    raise ValueError(
        f'{model_class.__name__} cannot have attn_implementation="{NAME}": its layers do not call '
        "transformers' AttentionInterface but compute attention themselves. Use the default"
    )


def uses_interface(model_class: type) -> bool:
    """Whether the attention layers of a model's module look their function up, if it has any."""
    module = sys.modules[model_class.__module__]
    if hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        return True
    own = (c for c in vars(module).values() if getattr(c, "__module__", None) == module.__name__)
    return not any(isinstance(c, type) and re.search("Attention", c.__name__) for c in own)
