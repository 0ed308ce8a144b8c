"""`quadriga chat`: a conversation with a model in the terminal, answered by one rollout engine."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from rich.console import Console
from rich.text import Text

from quadriga.actors.model.folder import read_config
from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.data.errors import Fault
from quadriga.data.records import Message, Prompt
from quadriga.orchestrator.cluster.processes import RolloutPlan, connected, processes
from quadriga.orchestrator.faults.recovery import Recovery
from quadriga.orchestrator.model_folders import find_model
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.tracking.console import make_console

CONTEXT = 2048
"""Longest conversation in tokens: the engine's cache is small."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
HELP = "/reset forgets the conversation, /quit or Ctrl-D ends."


class Conversation:
    """The turns that fit into the context.

    context: length of the context in tokens. max_tokens: longest answer, at most half of the context.
    """

    def __init__(self, tokenizer: Any, context: int, max_tokens: int):
        from quadriga.data.tokens.chat import ChatEncoder

        self._encoder = ChatEncoder(tokenizer)
        self._context, self._answer = context, min(max_tokens, context // 2)
        self.messages: list[Message] = []

    def ask(self, question: str) -> tuple[list[int], int]:
        """Add a question; return the prompt's token ids, and the number of old turns dropped to make room.

        Raises ValueError, and drops the question, if it does not fit or cannot be encoded.
        """
        kept, dropped = [*self.messages, {"role": "user", "content": question}], 0
        ids = self._ids(kept)
        while len(ids) + self._answer > self._context and len(kept) > 1:
            kept, dropped = kept[2:], dropped + 1
            ids = self._ids(kept)
        if len(ids) >= self._context:
            raise ValueError(f"that is {len(ids)} tokens, and the context of this model is {self._context}")
        self.messages = kept
        return ids, dropped

    def room(self, ids: list[int]) -> int:
        """Return the longest possible answer to a prompt, in tokens."""
        return min(self._answer, self._context - len(ids))

    def add_answer(self, text: str) -> None:
        """Add the answer. An empty one drops its question, because chat templates cannot render an empty turn."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []

    def _ids(self, messages: list[Message]) -> list[int]:
        return self._encoder.encode_prompts([self._encoder.render_prompt(messages)])[0]


def chat(
    target: str,
    *,
    temperature: float = 0.7,
    max_tokens: int = 256,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Run `quadriga chat`: talk to a run, checkpoint or model until /quit or the end of the input.

    If standard input is not a terminal, each of its lines is a question, and only answers go to standard output.
    Raises UserError if `target` is not a model, and Fault if the engine breaks.
    """
    from quadriga.data.tokens.chat import end_tokens
    from quadriga.data.tokens.tokenizer import decode_answer, load_tokenizer

    found = find_model(target)
    tokenizer = load_tokenizer(found.folder)
    context = context_length(found.folder)
    talk = Conversation(tokenizer, context, max_tokens)
    console, notes = console or make_console(), Console(stderr=True, highlight=False)
    cluster = _one_worker(found.cluster)
    logs = tempfile.mkdtemp(prefix="quadriga-chat-")
    notes.print(Text(f"{found.folder}, context {context} tokens, temperature {temperature:g}. {HELP}"), soft_wrap=True)
    with contextlib.ExitStack() as stack, _log_named_on_fault(f"{logs}/rollout-0.log", notes):
        with notes.status("Starting the engine"):
            stack.enter_context(connected(cluster))
            plan, losses = RolloutPlan(found.folder, context, load=True), Recovery(cluster.recovery).note
            running = stack.enter_context(processes(cluster, [], plan, logs, on_loss=losses))
        pool = RolloutPool(
            running.fleet,
            end_tokens(tokenizer),
            partial(decode_answer, tokenizer),
        )
        for turn, question in enumerate(_questions(console)):
            if question == "/reset":
                talk.reset()
                notes.print("The conversation is forgotten.")
                continue
            try:
                ids, dropped = talk.ask(question)
            except ValueError as error:
                notes.print(Text(f"Not asked: {error}."))
                continue
            if dropped:
                notes.print(f"The oldest {dropped} turn(s) no longer fit and are forgotten.")
            sampling = SamplingSettings(max_tokens=talk.room(ids), temperature=temperature)
            with notes.status("") if console.is_terminal else contextlib.nullcontext():
                [sample] = pool.generate([Prompt("chat", talk.messages, ids)], 1, sampling, seed, turn)
            talk.add_answer(sample.text)
            console.print(Text(sample.text), soft_wrap=True)
            if not sample.text:
                notes.print("(The answer is empty; the question is forgotten.)")
            elif not sample.ended:
                notes.print(f"(cut after {len(sample.response_ids)} tokens)")
    shutil.rmtree(logs, ignore_errors=True)


def context_length(folder: str) -> int:
    """Return the tokens of a conversation: the model's context, but at most `CONTEXT`."""
    config = read_config(folder)
    return min([CONTEXT, *(int(config[key]) for key in CONTEXT_KEYS if config.get(key))])


def _questions(console: Console) -> Iterator[str]:
    """Yield the user's questions until /quit, Ctrl-D or Ctrl-C; skip empty lines."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history)
    while True:
        try:
            line = console.input("[bold]> [/bold]") if terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            console.print()  # the shell's prompt starts on a new line
            return
        if not terminal and not line:
            return
        question = line.strip()
        if question == "/quit":
            return
        if question:
            yield question


@contextlib.contextmanager
def _log_named_on_fault(log: str, notes: Console) -> Iterator[None]:
    """Print the path of the engine's log if the block raises Fault."""
    try:
        yield
    except Fault:
        notes.print(Text(f"The engine's log is {log}"), soft_wrap=True)
        raise


def _one_worker(cluster: ClusterSettings) -> ClusterSettings:
    """Return the settings with a single rollout worker: one conversation needs one engine."""
    return cluster.model_copy(update={"rollout": cluster.rollout.model_copy(update={"workers": 1})})
