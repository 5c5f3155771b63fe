"""Hugging Face transformers on the kernels of this package.

    from flash_attn2.integrations.transformers import register

    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="flash_attn2")

`docs/transformers.md` says which models and options work.
"""

from __future__ import annotations

from flash_attn2.integrations.transformers.versions import NAME, OLDEST, TESTED, require_known

__all__ = ["NAME", "OLDEST", "TESTED", "register", "unregister"]


def register() -> str:
    """Makes `attn_implementation="flash_attn2"` known to transformers, and returns that name.

    Call it before models are made; once more changes nothing. ImportError without transformers, or
    with one older than `OLDEST`; `TESTED` are the releases that were tested, and others get a
    warning. It replaces a few functions of transformers, so that masks can be told apart by what
    they show, and so that models which would be given another implementation, or ignore the choice,
    say so. Other implementations work as before. `unregister` takes all of it back.
    """
    require_known()
    from flash_attn2.integrations.transformers import registration

    registration.install()
    return NAME


def unregister() -> None:
    """Undoes `register`; does nothing without it. Models that use the name stop working."""
    import sys

    registration = sys.modules.get("flash_attn2.integrations.transformers.registration")
    if registration is not None:
        registration.uninstall()
