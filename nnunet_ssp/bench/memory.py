"""Memory of a process, and of `export` or `import` in a new one.

As a module it is the process that is measured: `python -m nnunet_ssp.bench.memory export|import SOURCE TARGET`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CLEAR = Path("/proc/self/clear_refs")


def resident(which: str) -> int | None:
    """Read the bytes that this process holds (VmRSS) or held at most (VmHWM); None without Linux's table."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) * 1024
    return None


def growth_of(work: Callable[[], object]) -> int | None:
    """Return the bytes by which this process grows at most while it works; None where the system does not tell."""
    try:
        CLEAR.write_text("5")  # the largest size so far becomes the present one
    except OSError:
        return None
    before = resident("VmRSS")
    work()
    after = resident("VmHWM")
    return None if before is None or after is None else after - before


def growth_of_sharing(what: str, source: Path, target: Path) -> int | None:
    """Return the bytes that `export` or `import --pth` takes at most beside PyTorch, which a new process loads first.

    What else has to be loaded counts: modules of this package and of nnU-Net.

    Args:
        what: `export` or `import`.
        source: A checkpoint, or what was exported.
        target: The new file.
    """
    words = [sys.executable, "-m", __name__, what, str(source), str(target)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    grown = said.split()[-1]  # the command prints before
    return int(grown) if grown.isdecimal() else None


def _share(what: str, source: Path, target: Path) -> None:
    if what == "export":
        from nnunet_ssp.sharing.export import export_checkpoint

        export_checkpoint(source, target)
    else:
        from nnunet_ssp.sharing.importing import import_bundle

        import_bundle(source, pth=target)


if __name__ == "__main__":
    import torch  # noqa: F401

    print(growth_of(lambda: _share(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
