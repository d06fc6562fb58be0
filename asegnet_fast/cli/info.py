"""`asegnet-fast info`: what is installed and what serves each operation."""

from __future__ import annotations


def info() -> None:
    """Print versions, libraries found, and what serves each operation and why."""
    import torch

    import asegnet_fast as af
    from asegnet_fast import _extension
    from asegnet_fast.environment import choose_device, environment

    lines = environment(choose_device("auto"))
    lines |= {f"library {device}": reason or "loaded" for device, reason in _extension.absent.items()}
    lines |= {f"build {name}": value for name, value in _extension.build_info().items()}
    lines["torch's CUDA"] = torch.version.cuda or "none"
    for name, value in lines.items():
        print(f"{name:<26}{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    for op, devices in af.backends().items():
        for device, entry in devices.items():
            print(f"\n{op} on {device}: served by {entry['serves']}")
            for name in ("native", "triton"):
                print(f"  {name:<8}{entry[name]}")
