"""What makers publish of their GPUs, as speeds for machines on which nothing was measured."""

from dataclasses import dataclass

from quadriga.launch.plan.seconds import Call, Generation
from quadriga.launch.plan.shapes import ModelShape

COMPUTE, MEMORY, LINK = 0.4, 0.6, 0.5
"""Shares of the published peaks that are taken for granted: of operations (0.3 to 0.5 is usual in training, Chowdhery
et al. 2022, section 4.1), of memory bandwidth in decoding, of links between GPUs."""

ENGINE_STEP = 0.005
"""Seconds that an engine's step takes beside its work."""

OBJECT_STORE = 2e9
"""Bytes a second of weights on their way through Ray's object store, packing and checksums included."""


@dataclass(frozen=True)
class Published:
    """Peaks of one GPU, from its data sheet: bfloat16 operations a second (dense), bytes a second of its memory, and in
    one direction of its links to the other GPUs of a node. A `Speeds`."""

    name: str
    operations: float
    memory: float
    link: float
    slowdown: float = 1.0

    def call(self, call: Call, threads: int) -> float:
        """Operations, the optimizer's 28 bytes a parameter, and what goes over the links; nothing overlaps."""
        optimizer = 28.0 * call.shape.parameters(call.head) / call.ranks if call.trains else 0.0
        peak = self.operations if call.width == 2 else self.operations / 2
        moved = (call.moved + call.gathered + optimizer) / (MEMORY * self.memory)
        return call.flops / (COMPUTE * peak) + moved + call.sent / (LINK * self.link)

    def generation(self, generation: Generation) -> float:
        """The larger of what is computed and what is read, and the engine's own steps."""
        compute = generation.flops / (COMPUTE * self.operations)
        read = generation.read / (MEMORY * self.memory)
        return max(compute, read) / generation.parts + generation.steps * ENGINE_STEP

    def sync(self, shape: ModelShape, width: int) -> float:
        """Through host memory."""
        return width * shape.parameters() / OBJECT_STORE

    def describe(self) -> str:
        """A sentence."""
        return (
            f"Nothing was measured on this kind of machine: seconds are told from the published peaks of an "
            f"{self.name}, of which {COMPUTE:.0%} of the operations, {MEMORY:.0%} of the memory's speed and {LINK:.0%} "
            "of the links' are taken for granted. For better ones run `quadriga plan --calibrate` there."
        )


GPUS = {
    gpu.name: gpu
    for gpu in (
        Published("A100", 312e12, 2.0e12, 300e9),
        Published("H100", 989e12, 3.35e12, 450e9),
        Published("H200", 989e12, 4.8e12, 450e9),
    )
}
"""NVIDIA's data sheets of the SXM versions, 80, 80 and 141 GB."""


def published(name: str) -> Published | None:
    """The GPU of which this is the full name, such as `NVIDIA H100 80GB HBM3`."""
    return next((gpu for known, gpu in GPUS.items() if known in name), None)
