"""What this machine can do."""

import torch


def has_bf16() -> bool:
    """Whether matrix products in bf16 run on hardware of their own; elsewhere they are slower than in fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
