"""A model worker that writes down the gradients that each optimizer step applies."""

from pathlib import Path

from safetensors.torch import save_file

from quadriga.actors.model.worker import ModelWorker


class RecordingWorker(ModelWorker):
    """Rank 0 saves the whole gradients, before clipping, as <folder>/step-<n>.safetensors."""

    folder: Path | None = None

    def record(self, folder: str) -> None:
        """Save gradients here from now on, beginning with step 0."""
        self.folder, self.recorded = Path(folder), 0

    def optimizer_step(self, lr: float, stats: dict[str, float]) -> float:
        from deepspeed.utils import safe_get_full_grad

        if self.folder is not None:
            named = self.model.named_parameters()
            whole = {name: p.grad if p.grad is not None else safe_get_full_grad(p) for name, p in named}
            if self.spec.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                gradients = {name: gradient.float().cpu().contiguous() for name, gradient in whole.items()}
                save_file(gradients, self.folder / f"step-{self.recorded}.safetensors")
            self.recorded += 1
        return super().optimizer_step(lr, stats)
