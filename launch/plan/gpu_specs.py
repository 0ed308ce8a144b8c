"""Published peaks of GPUs, as speeds of machines that are not calibrated."""

from dataclasses import dataclass

from quadriga.launch.plan.calibration import Call, Generation, Transfer

# Assumed shares of the peaks: of operations (0.3 to 0.5 is usual in training, Chowdhery et al. 2022, section 4.1), of
# memory bandwidth in decoding, of links between GPUs.
COMPUTE, MEMORY, LINK = 0.4, 0.6, 0.5
ADAMW = 28.0  # bytes per parameter that the optimizer moves
ENGINE_STEP = 0.005  # seconds that an engine's step takes beside its work
OBJECT_STORE = 2e9  # bytes of weights per second through Ray's object store, packing and checksums included


@dataclass(frozen=True)
class GpuSpec:
    """Peaks of a GPU's data sheet: dense bfloat16 operations per second, bytes per second of its memory, and of its
    links to the other GPUs of a node in one direction."""

    operations: float
    memory: float
    link: float
    slowdown: float = 1.0

    def seconds(self, work: Call | Generation | Transfer, threads: int = 1) -> float:
        """Return the seconds of work by itself. In calls nothing overlaps; engines compute while they read."""
        if isinstance(work, Transfer):
            return work.size / OBJECT_STORE
        if isinstance(work, Generation):
            longer = max(work.flops / (COMPUTE * self.operations), work.read / (MEMORY * self.memory))
            return longer / work.parts + work.steps * ENGINE_STEP
        peak = self.operations if work.width == 2 else self.operations / 2
        moved = (work.moved + work.gathered + ADAMW * work.updated / work.ranks) / (MEMORY * self.memory)
        return work.flops / (COMPUTE * peak) + moved + work.sent / (LINK * self.link)


# NVIDIA's data sheets of the SXM versions, 80, 80 and 141 GB.
GPUS = {
    "A100": GpuSpec(312e12, 2.0e12, 300e9),
    "H100": GpuSpec(989e12, 3.35e12, 450e9),
    "H200": GpuSpec(989e12, 4.8e12, 450e9),
}
