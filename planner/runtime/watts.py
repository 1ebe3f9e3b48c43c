"""Power of this process's device where it tells: NVML through torch on GPUs, RAPL's energy counters on processors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RAPL = Path("/sys/class/powercap")
SAMPLE_S = 0.05


class Meter:
    """Mean watts while something runs; ``tells`` is false where nothing can be read."""

    def __init__(self, device: torch.device, rapl: Path = RAPL):
        self.device, self.rapl = device, rapl
        self.tells = (self._gpu_w() if device.type == "cuda" else self._counters_uj()) is not None

    def watts(self, call: Callable[[], None]) -> float | None:
        """Mean power of the device, or of all packages of the host, while ``call`` runs; ``None`` where unreadable."""
        if self.device.type == "cuda":
            return self._sampled(call)
        before, began = self._counters_uj(), time.monotonic()
        call()
        after, took_s = self._counters_uj(), time.monotonic() - began
        if before is None or after is None or set(before) != set(after):
            return None
        taken = [self._taken_uj(it, before[it], after[it]) for it in before]
        return None if None in taken else 1e-6 * sum(taken) / max(took_s, 1e-9)

    def _taken_uj(self, counter: Path, before: int, after: int) -> int | None:
        """What a counter went on by; one that reached its end began again at 0. Source: Linux, power/powercap."""
        if after >= before:
            return after - before
        try:
            return after - before + int(counter.with_name("max_energy_range_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _sampled(self, call: Callable[[], None]) -> float | None:
        samples, over = [], threading.Event()

        def sample() -> None:
            while not over.is_set():
                samples.append(self._gpu_w())
                time.sleep(SAMPLE_S)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        call()
        over.set()
        thread.join()
        return sum(samples) / len(samples) if samples and None not in samples else None

    def _gpu_w(self) -> float | None:
        """Watts of the GPU now; ``None`` where it does not tell."""
        import torch

        try:
            return torch.cuda.power_draw(self.device) / 1e3
        except (OSError, ValueError, RuntimeError, ModuleNotFoundError):
            return None

    def _counters_uj(self) -> dict[Path, int] | None:
        """Microjoules by counter, one a package of the host; ``None`` where there is none or one cannot be read."""
        try:
            found = {it: int(it.read_text(encoding="ascii")) for it in self.rapl.glob("intel-rapl:?/energy_uj")}
        except (OSError, ValueError):
            return None
        return found or None
