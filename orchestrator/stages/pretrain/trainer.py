"""Pre-training: next-token prediction on packed documents, from fresh weights or a model's."""

from quadriga.actors.model.batch import Element
from quadriga.actors.model.folder import check_context, model_path
from quadriga.data.records import Tokens
from quadriga.orchestrator.stages.pretrain.rows import packed_documents
from quadriga.orchestrator.stages.pretrain.spec import PretrainStage
from quadriga.orchestrator.training.supervised import SupervisedStage, masked_element


class Pretrain(SupervisedStage):
    """Next-token prediction on documents packed into rows of about `data.max_tokens` tokens."""

    settings: PretrainStage

    def load_inputs(self) -> None:
        """Load or train the tokenizer, load or create the weights, pack the documents into rows."""
        from quadriga.actors.model.export import save_fresh_model
        from quadriga.data.loading.datasets import document_texts, load_documents
        from quadriga.data.tokens.tokenizer import load_tokenizer, train_tokenizer

        settings, model = self.settings, self.settings.model
        start = self.run.path / "start"
        if model.path is not None:
            self.path = model_path(model, "model")
            self.tokenizer = load_tokenizer(settings.tokenizer.path or self.path)
        elif (start / "config.json").is_file():
            self.path, self.tokenizer = str(start), load_tokenizer(start)
        else:
            source = settings.tokenizer
            if source.path is not None:
                self.tokenizer = load_tokenizer(source.path)
            else:
                self.tokenizer = train_tokenizer(document_texts(settings.data, settings.seed), source.vocab_size)
            assert model.shape is not None
            save_fresh_model(model.shape, self.tokenizer, settings.seed, start)
            self.path = str(start)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_documents(settings.data, self.tokenizer, settings.seed)
        self.skipped = split.skipped
        self.elements = packed_rows(split.train, settings.data.max_tokens, settings.seed)
        self.heldout = packed_rows(split.heldout, settings.data.max_tokens, settings.seed)


def packed_rows(rows: list[Tokens], max_tokens: int, seed: int) -> list[Element]:
    """Return an element per packed row; attention stays inside each document."""
    return [masked_element(row) for row in packed_documents(rows, max_tokens, seed)]
