"""Power of this process's device where it tells: NVML through torch on GPUs, RAPL's energy counters on processors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
SAMPLE_S = 0.05


class Meter:
    """Mean watts while something runs; ``tells`` is false where nothing can be read."""

    def __init__(self, device: torch.device, rapl: Path = RAPL):
        self.device, self.rapl = device, rapl
        self.tells = self._read() is not None

    def watts(self, call: Callable[[], None]) -> float:
        """Mean power of the device, or of all packages of the host, while ``call`` runs."""
        if self.device.type == "cuda":
            return self._sampled(call)
        before, began = self._read(), time.monotonic()
        call()
        return (self._read() - before) / max(time.monotonic() - began, 1e-9)

    def _sampled(self, call: Callable[[], None]) -> float:
        samples, over = [], threading.Event()

        def sample() -> None:
            while not over.is_set():
                samples.append(self._read() or 0.0)
                time.sleep(SAMPLE_S)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        call()
        over.set()
        thread.join()
        return sum(samples) / max(1, len(samples))

    def _read(self) -> float | None:
        """Watts of a GPU now; joules that all packages of a host have taken so far; ``None`` where nothing tells."""
        try:
            if self.device.type == "cuda":
                return torch.cuda.power_draw(self.device) / 1e3
            counters = sorted(self.rapl.glob("intel-rapl:?/energy_uj"))
            return sum(int(it.read_text(encoding="ascii")) for it in counters) * 1e-6 if counters else None
        except (OSError, ValueError, RuntimeError, ModuleNotFoundError):
            return None
