"""An lm-eval `hf` model in which every request runs without neurons of its own document.

lm-eval sorts requests and forms batches inside `HFLM`, which does not say whose rows are in a batch. So requests are
sorted and cut into batches here, by the same keys, and each batch is handed to `HFLM` as if it were all there is. That
it kept the order is checked against the tokens of every batch, not assumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from traceback import walk_stack
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from plnd.errors import PLNDError
from plnd.interventions import Intervention
from plnd.model_description import check_model
from plnd.models.accepted import fills_in
from plnd.models.layout import Layout, check_tokens
from plnd.models.loading import model_class
from plnd.roles.deactivation import Choice, deactivated_rows
from plnd.roles.parallel import prompt_digest
from plnd.roles.roles import Roles

T = TypeVar("T")


def in_one_line(action: Callable[[], T]) -> T:
    """What `action` returns; on lm-eval's own command line, bad input is one line and exit status 2."""
    try:
        return action()
    except PLNDError as error:
        modules = (str(frame.f_globals.get("__name__")) for frame, _ in walk_stack(None))
        if not any(name.startswith("lm_eval._cli") for name in modules):  # called from Python
            raise
        print(f"lm_eval --model plnd: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def loading_device(model: Any, device: str | None) -> str | None:
    """The device to load a model on by name: `HFLM`, made in Python, takes cuda for given; a loaded model stays."""
    if not isinstance(model, str) or device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


class DocumentLM(HFLM):
    """`HFLM` that switches off other neurons for every document; does nothing of its own before `switch_off`."""

    roles: Roles | None = None
    choice: Choice
    intervention: Intervention | None = None

    def _get_backend(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """As in `HFLM`; what is neither a decoder nor has an encoder and one is made by the auto class it has.

        Raises:
            PLNDError: of an encoder that fills in masked tokens: lm-eval scores next ones.
        """
        if fills_in(config):
            raise PLNDError(
                f"model_type {config.model_type!r} fills in masked tokens and predicts no next ones, which lm-eval"
                " scores: measure what is off in your own evaluation (plnd.deactivated, plnd export)"
            )
        super()._get_backend(config, *args, **kwargs)
        kind = model_class(config)
        if self.backend == "causal" and kind is not None and type(config) not in AutoModelForCausalLM._model_mapping:
            self.AUTO_MODEL_CLASS = kind

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """As in `HFLM`; token ids that the model has no embedding for are refused."""
        ids = super().tok_encode(string, *args, **kwargs)
        self._check_tokens(ids)
        return ids

    def _check_tokens(self, ids: list[int]) -> None:
        in_one_line(lambda: check_tokens(self.model, ids, "the tokenizer"))

    def switch_off(self, roles: Roles, choice: Choice, intervention: Intervention | None = None) -> None:
        """From now on every request runs without the neurons that `choice` takes in its document.

        Args:
            roles: of the neurons.
            choice: which of them.
            intervention: what becomes of their values, instead of zero.

        Raises:
            ModelMismatchError: if the roles were found in another model.
        """
        self.layout = Layout(self.model)
        check_model(roles.model, self.layout.description(), "roles")
        self.roles, self.choice, self.intervention = roles, choice, intervention
        self.logits_cache = False  # it lets two requests with the same tokens share a row
        self._expected: list[Any] | None = None
        self._counts: dict[int, int] = {}
        self._detected: int | None = None
        self._detecting = False

    def record(self) -> dict[str, Any]:
        """In how many examples neurons were switched off so far, and how many in each, on average."""
        assert self.roles is not None
        counts = list(self._counts.values())
        return {
            "examples": len(counts),
            "neurons": sum(counts) / len(counts) if counts else None,
            "of": self.roles.total,
            "share": sum(counts) / len(counts) / self.roles.total if counts else None,
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in `HFLM`, each request without its own document's neurons."""
        self._owners = [] if self.roles is None else in_one_line(lambda: self._examples(requests))
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As in `HFLM`; refused with roles, which are those of a prompt before its answer."""
        if self.roles is not None:
            in_one_line(self._refuse_running_text)
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in `HFLM`, each request without its own document's neurons, in every step."""
        if self.roles is None:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        examples, texts = in_one_line(lambda: self._examples(requests)), [str(request.args[0]) for request in requests]
        found: list[str] = [""] * len(requests)
        order = sorted(
            range(len(requests)),
            key=lambda n: (repr(requests[n].args[1]), -len(self.tok_encode(texts[n])), texts[n]),
        )
        size = self._detected = self._size(None)
        with tqdm(
            total=len(order), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests"
        ) as bar:
            for rows in _batches(order, size, lambda n: repr(requests[n].args[1])):
                with self._rows([examples[n] for n in rows], [texts[n] for n in rows]):
                    answers = super().generate_until([requests[n] for n in rows], disable_tqdm=True)
                for n, answer in zip(rows, answers, strict=True):
                    found[n] = answer
                bar.update(len(rows))
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if self.roles is None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        assert len(requests) == len(self._owners)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        order = sorted(
            range(len(requests)),
            key=lambda n: (-len(requests[n][1] + requests[n][2]), tuple(requests[n][1] + requests[n][2])),
        )
        size = self._size([requests[n] for n in order])
        with tqdm(
            total=len(order), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        ) as bar:
            for rows in _batches(order, size):
                batch = [requests[n] for n in rows]
                inputs = [self._input(context, answer) for _, context, answer in batch]
                unread = min(len(ids) - len(answer) for ids, (_, _, answer) in zip(inputs, batch, strict=True))
                with self._rows([self._owners[n] for n in rows], inputs, unread):
                    answers = super()._loglikelihood_tokens(batch, disable_tqdm=True, override_bs=len(batch))
                for n, answer in zip(rows, answers, strict=True):
                    found[n] = answer
                bar.update(len(rows))
        return found

    def _input(self, context: list[int], continuation: list[int]) -> list[int]:
        """What `HFLM` puts into a row for a request."""
        if self.backend == "causal":
            return (context + continuation)[-(self.max_length + 1) :][:-1]
        return context[-self.max_length :]

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `HFLM`; the contexts of a generated batch pass here."""
        if self.roles is not None and self._expected is not None:
            self._check([str(text) for text in strings])
        ids, mask = super().tok_batch_encode(strings, *args, **kwargs)
        self._check_tokens(ids.unique().tolist())
        return ids, mask

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.roles is not None and not self._detecting:
            expected = self._expected or []
            lengths = [len(ids) for ids in expected] + [0] * (len(inps) - len(expected))
            self._check([row[:length] for row, length in zip(inps.tolist(), lengths, strict=False)])
        return super()._model_call(inps, *args, **kwargs)

    def _check(self, found: list[Any]) -> None:
        if found != self._expected:
            raise PLNDError(
                "this lm-eval puts requests into batches in another order than 0.4.13: roles= cannot be used"
            )

    def _refuse_running_text(self) -> None:
        raise PLNDError("roles= is for tasks that ask and answer, not for running text (loglikelihood_rolling)")

    def _examples(self, requests: Sequence[Instance]) -> list[int]:
        assert self.roles is not None
        return [
            self.roles.example_of(request.task_name, request.doc_id, prompt_digest(str(request.args[0])))
            for request in requests
        ]

    @contextmanager
    def _rows(self, examples: Sequence[int], expected: list[Any], unread: int = 0) -> Iterator[None]:
        """The batch that is run inside has these examples in its rows, and its first `unread` logits are not made.

        Nobody reads the logits of a context but the last; `HFLM` takes those of a continuation from the end.
        """
        assert self.roles is not None
        chosen = {example: self.choice.neurons(self.roles, example) for example in set(examples)}
        self._counts |= {example: int(sum(map(np.sum, masks.values()))) for example, masks in chosen.items()}
        self._expected = expected
        try:
            with ExitStack() as stack:
                rows = [chosen[example] for example in examples]
                stack.enter_context(deactivated_rows(self.layout, rows, self.intervention))
                head = self.layout.model.get_output_embeddings()
                if unread > 0 and self.backend == "causal" and isinstance(head, torch.nn.Module):
                    hook = head.register_forward_pre_hook(lambda module, args: (args[0][:, unread:], *args[1:]))
                    stack.callback(hook.remove)
                yield
        finally:
            self._expected = None

    def _size(self, requests: Sequence | None) -> int:
        return self._detect_batch_size(requests) if self.batch_size == "auto" else int(self.batch_size)

    def _detect_batch_size(self, requests: Sequence | None = None, pos: int = 0) -> int:
        if self.roles is None:
            return super()._detect_batch_size(requests, pos)
        if requests is None and self._detected is not None:
            return self._detected
        self._detecting = True
        try:
            return super()._detect_batch_size(requests, pos)
        finally:
            self._detecting = False


def _batches(order: Sequence[int], size: int, kind: Callable[[int], Hashable] = lambda n: None) -> Iterator[list[int]]:
    """Runs of at most `size` consecutive numbers of one kind."""
    batch: list[int] = []
    for n in order:
        if batch and (len(batch) == size or kind(n) != kind(batch[0])):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
