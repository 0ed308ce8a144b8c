"""Supervised fine-tuning: demonstrations, with the loss on answers only."""

from quadriga.actors.model.folder import check_context, model_path
from quadriga.orchestrator.stages.sft.spec import SftStage
from quadriga.orchestrator.training import invariants
from quadriga.orchestrator.training.supervised import SupervisedStage, masked_element


class Sft(SupervisedStage):
    """Fine-tuning on demonstrations."""

    settings: SftStage

    def load_inputs(self) -> None:
        """Load the model's tokenizer, and demonstrations with their loss masks."""
        from quadriga.data.loading.datasets import load_demonstrations
        from quadriga.data.tokens.chat import end_tokens
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.path = model_path(settings.model, "model")
        self.tokenizer = load_tokenizer(self.path)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_demonstrations(settings.data, self.tokenizer, settings.seed)
        self.note_rows(split, settings.data.max_tokens)
        invariants.eos_is_learned(split.train, end_tokens(self.tokenizer))
        self.elements = [masked_element([row]) for row in split.train]
        self.heldout = [masked_element([row]) for row in split.heldout]

    def is_finished(self) -> bool:
        """Return True at the last step or, where the settings say so, once two measurements brought no improvement."""
        losses = [loss for _, loss in self.state.measured]
        rises = len(losses) > 2 and min(losses[-2:]) >= min(losses[:-2])
        return super().is_finished() or (self.settings.stop_when_heldout_rises and rises)
