"""One rank of a calibration with few and small points, to see that all of it works rather than to measure well."""

from __future__ import annotations

from planner.runtime import calibrate_job, probes

probes.PRODUCTS["cpu"] = ((16, 256), (64, 256), (64, 256))
probes.MOVED_BYTES["cpu"] = (2**14, 2**20, 2**22)
probes.ATTENTIONS["cpu"] = ((2, 64, 64), (2, 256, 64))
probes.LAYERS["cpu"] = ((128, 128), (128, 256))
probes.MESSAGES["cpu"] = (2**8, 2**14, 2**18)

if __name__ == "__main__":
    calibrate_job.main()
