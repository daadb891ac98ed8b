"""The lm-evaluation-harness model `plnd`: its own `hf` model with neurons deactivated, by a mask or by role."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from torch import nn

from lm_eval_plnd.deactivations import ARGUMENTS, MaskDeactivation, Steering, read_deactivation
from lm_eval_plnd.documents import DocumentLM, in_one_line, loading_device
from lm_eval_plnd.identity import answers_digest
from plnd.errors import PLNDError
from plnd.models.distributed import group_of
from plnd.models.layout import check_tokens, unwrap
from plnd.models.loading import cannot_load
from plnd.models.running import lease
from plnd.neurons.neuron_set import NeuronSet
from plnd.probing.rows import accept_family

_OF_HF = frozenset(signature(HFLM.__init__).parameters) - {"self", "kwargs"}
_OF_LOADING = ("peft", "delta", "gguf_file", "autogptq", "gptqmodel", "parallelize", "tp_plan", "subfolder")
_TURNS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""One lock for each model object: two threads that evaluate it take turns, each with its own neurons off."""


class PLNDLM(DocumentLM):
    """`lm_eval --model plnd --model_args mask=zh.safetensors[,regions=under,under=8][,control=random,seed=0]`.

    Everything else is `HFLM`: log-likelihoods and generation run on a model whose neurons are switched off once for all
    requests of a kind, so a request costs what it costs with `--model hf`.

    Or `roles=xnli.roles.safetensors,deactivate=all_shared[,control=random,seed=0]`, or `deactivate=random,share=0.25`:
    each request runs without its own document's neurons of that role.

    `intervene=mean,means=F`, `intervene=scale,factor=0.5` do that to the neurons instead of switching them off;
    `steer=de.direction.safetensors,strength=2` adds a direction to hidden states, with a mask or without.

    In between the model is whole: `pretrained=` may be a loaded model that others use, too, with masks of their own or
    none. `deactivated()` switches the neurons off for what does not go through lm-eval.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike | nn.Module | None = None,
        mask: str | os.PathLike | NeuronSet | None = None,
        *,
        revision: str | None = None,
        peft: str | os.PathLike | None = None,
        trust_remote_code: bool = False,
        family: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> None:
        """Loads the model, after all else was checked.

        Args:
            pretrained: as for `hf`; by default the base model that the mask (or the adapter) was made for, at its
                revision.
            mask: neurons artifact, or a `NeuronSet` from Python.
            revision: as for `hf`.
            peft: an adapter, as for `hf`; alone it deactivates nothing.
            trust_remote_code: run the Python code that comes with the model.
            family: row that `plnd probe --output` wrote, for a model outside the families table (`plnd.accept_family`).
            arguments: every other argument of `hf`, and what to deactivate:

                - regions: only these parts of the mask, joined by `+`: under, solve, solve_attn, solve_ffn, gen;
                - under, gen: number of understanding and of generation blocks, where `regions` needs them;
                - projections: only these, joined by `+`;
                - control: `random` deactivates as many randomly drawn neurons per block and projection as the mask has
                  there; with `roles`, as many of each block as the document's own;
                - seed: of the control (0);
                - mode: auto, weights or activations (`plnd.deactivated`);
                - roles: roles artifact instead of a mask, or `Roles` from Python;
                - deactivate: with `roles`, one of `plnd.roles.ROLES`, or `random`;
                - share: with `deactivate="random"`, the share of each block's neurons, drawn anew for every document;
                - intervene: what becomes of the values of the mask's or the role's neurons: zero, mean, scale or steer
                  (`plnd.intervened`);
                - means: with `intervene="mean"`, a means artifact from `plnd reference`, or `Means` from Python;
                - factor: with `intervene="scale"`;
                - steer: a direction artifact from `plnd reference`, or `Direction` from Python. With
                  `intervene="steer"` it is added to the neurons' values; else to what leaves the blocks, whatever is
                  done to neurons beside it, and a mask may be left out;
                - strength: how many times the direction (1);
                - blocks: at which blocks, `8-15` or joined by `+` (all).

        Raises:
            PLNDError: if mask, roles or model cannot be read, do not belong together, or an argument makes no sense.
        """
        adapter = None if peft is None else str(peft)
        given = {name: arguments.pop(name) for name in ARGUMENTS if name in arguments}
        source = read_deactivation({"mask": mask, **given}, adapter)
        if adapter is not None:
            import peft_plnd  # noqa: F401  PEFT then knows neuron-select adapters

            arguments["peft"] = adapter
        if pretrained is None:
            pretrained, named = source.base_model()
            revision = revision or named
        model = _named_or_loaded(pretrained)
        _check_arguments(model, arguments)
        if not isinstance(trust_remote_code, bool):  # None would have transformers ask, in the middle of a run
            raise PLNDError(f"trust_remote_code={trust_remote_code}: expected True or False")
        if family is not None:
            accept_family(os.fspath(family), model, revision=revision, trust_remote_code=trust_remote_code)
        arguments["device"] = loading_device(model, arguments.get("device"))
        self._settings = {"revision": revision, **arguments}
        with _loading(model):
            super().__init__(model, revision=revision or "main", trust_remote_code=trust_remote_code, **arguments)
        if (prefix := arguments.get("prefix_token_id")) is not None:
            check_tokens(self.model, [prefix], f"prefix_token_id={prefix}")
        self.source = source
        self._off = False
        source.attach(self)

    @property
    def neurons(self) -> NeuronSet | None:
        """What is deactivated in every request; None where it differs by document, or nothing is."""
        source = self.source.inner if isinstance(self.source, Steering) else self.source
        return source.neurons if isinstance(source, MaskDeactivation) else None

    @contextmanager
    def deactivated(self) -> Iterator[nn.Module]:
        """`model` without the neurons, as it answers requests; restored on exit. With roles, which are of a request's
        document, the whole model.

        May be nested. Other threads that evaluate the same model, with an adapter or without, wait; those that detect
        on it, or switch neurons of it off otherwise, are refused in one line, and so is this while they do.
        """
        base = _base(self.model)
        with _TURNS.setdefault(base, RLock()):
            if self._off:
                yield self.model
                return
            release = lease(base)  # also of a model of which nothing is switched off, which others leave alone then
            try:
                with self.source.applied(self.model):
                    self._off = True
                    try:
                        yield self.model
                    finally:
                        self._off = False
            finally:
                release()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in `HFLM`, without the neurons."""
        with self.deactivated():
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As in `HFLM`, without the neurons."""
        with self.deactivated():
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As in `HFLM`, without the neurons."""
        with self.deactivated():
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.deactivated():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.deactivated():
            return super()._model_generate(*args, **kwargs)

    def get_model_info(self) -> dict:
        """What `hf` reports, and under `plnd` what was deactivated; both end in the results file.

        With roles, `evaluated` says in how many examples so far, and how many neurons in each on average.
        """
        evaluated = {} if self.roles is None else {"evaluated": self.record()}
        return {**super().get_model_info(), "plnd": {**self.source.record(), **evaluated}}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keeps this model's answers in a table of their own within lm-eval's response cache.

        `--use_cache` keys on the request alone, so without this a mask could be served another mask's, or the plain
        model's, answers. The table is named after all that they depend on, by content (`answers_digest`), since a name
        or a folder may hold another model, or another adapter, the next time. Reader and writer of the cache share one
        `SqliteDict`, whose table every statement names.

        Raises:
            PLNDError: if the content cannot be told, or this lm-eval keeps its cache otherwise.
        """
        store = cache_hook.dbdict
        if store is not None:
            store.tablename = in_one_line(lambda: self._cache_table(store))
            store.conn.execute(f'CREATE TABLE IF NOT EXISTS "{store.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
            store.commit()
        super().set_cache_hook(cache_hook)

    def _cache_table(self, store: Any) -> str:
        if self.roles is not None:
            raise PLNDError(
                "--use_cache tells requests apart by their text, and roles= by their document: leave it out"
            )
        if group_of(unwrap(self.model, spread=True)) is not None:
            raise PLNDError(
                "--use_cache: of a tensor-parallel model each process would wait for the others in what its own cache"
                " does not have: leave it out"
            )
        if not hasattr(store, "tablename"):
            raise PLNDError("this lm-eval keeps its cache in a way that cannot tell masks apart: leave --use_cache out")
        return f"plnd_{answers_digest(self.model, self.tokenizer, self.source.digest, self._settings)}"

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> PLNDLM:
        """As in lm-eval; on its command line bad input is one line and exit status 2."""
        in_one_line(lambda: _check_once(simple_parse_args_string(arg_string), additional_config))
        return in_one_line(lambda: super(PLNDLM, cls).create_from_arg_string(arg_string, additional_config))

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> PLNDLM:
        """As in lm-eval; on its command line bad input is one line and exit status 2.

        Where `arg_dict` leaves `pretrained` to the mask, it is filled in: lm-eval names the folder of results after it,
        and makes a name of six random letters up if it is not there. A later call takes it as left out again.
        """
        given = {name: value for name, value in arg_dict.items() if not isinstance(value, _FilledIn)}
        in_one_line(lambda: _check_once(given, additional_config))
        lm = in_one_line(lambda: super(PLNDLM, cls).create_from_arg_obj(given, additional_config))
        if given.get("pretrained") is None:
            arg_dict["pretrained"] = _FilledIn(lm.pretrained)
        return lm


def _check_once(arguments: Mapping[str, Any], further: Mapping[str, Any] | None) -> None:
    """Refuses model arguments that lm-eval gives as well: `--batch_size` has a default on its command line."""
    for name, value in (further or {}).items():
        if value is not None and name in arguments:
            raise PLNDError(
                f"{name}={arguments[name]} in model_args: lm-eval gives {name}={value} itself; take --{name}"
            )


def _base(model: Any) -> nn.Module:
    """The model that an adapter is around, which others may evaluate without it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _FilledIn(str):
    """A model's name that the user did not give."""


def _named_or_loaded(pretrained: Any) -> Any:
    """A name as a string; a loaded model without the wrappers that lm-eval does not take: pipelines, `DataParallel`, …

    A PEFT model stays one: its adapters answer.
    """
    if isinstance(pretrained, os.PathLike):
        return os.fspath(pretrained)
    if isinstance(pretrained, str) or hasattr(pretrained, "peft_config"):
        return pretrained
    is_pipeline = isinstance(getattr(pretrained, "model", None), nn.Module)
    return unwrap(pretrained, spread=True) if isinstance(pretrained, nn.Module) or is_pipeline else pretrained


def _check_arguments(pretrained: Any, arguments: dict[str, Any]) -> None:
    """Refuses arguments that nobody knows, or that would not be heeded."""
    loaded = not isinstance(pretrained, str)
    if loaded and not isinstance(pretrained, nn.Module):
        raise PLNDError(f"pretrained={pretrained!r:.60}: expected a folder or hub name, or a loaded model")
    for name in sorted(arguments.keys() - _OF_HF):
        alike = get_close_matches(name, [*ARGUMENTS, *_OF_HF], n=1, cutoff=0.8)
        if alike or loaded:  # transformers refuses what it does not know while it loads a model
            hint = f"did you mean {alike[0]}=?" if alike else "a loaded model takes none of transformers' own"
            raise PLNDError(f"unknown argument {name}=: {hint}")
    _check_numbers(arguments)
    if loaded:
        for name in _OF_LOADING:
            if arguments.get(name):
                raise PLNDError(f"{name}= says how to load a model, and pretrained= is a loaded one: give its name")
        _check_placement(pretrained, arguments)


def _check_numbers(arguments: dict[str, Any]) -> None:
    """Refuses numbers with which `hf` ends in a traceback, or scores requests of which nothing is left."""
    for name, least in (("max_length", 1), ("batch_size", 1), ("max_batch_size", 1), ("prefix_token_id", 0)):
        value = arguments.get(name)
        if value is None or (name == "batch_size" and str(value).startswith("auto")):
            continue
        whole = str(value).isdecimal() if name == "batch_size" else isinstance(value, int)  # lm-eval gives "8", too
        if isinstance(value, bool) or not whole or int(value) < least:
            raise PLNDError(f"{name}={value}: expected a whole number, {least} or more")


def _check_placement(model: Any, arguments: dict[str, Any]) -> None:
    """A loaded model stays in its dtype and on its device, whatever the arguments say."""
    dtype, device = arguments.get("dtype") or "auto", arguments.get("device")
    if dtype != "auto" and str(dtype).removeprefix("torch.") != str(model.dtype).removeprefix("torch."):
        raise PLNDError(f"dtype={dtype}: the loaded model is in {model.dtype}; convert it before, or leave dtype= out")
    if device is not None and torch.device(device).type != model.device.type:
        raise PLNDError(f"device={device}: the loaded model is on {model.device}; move it before, or leave device= out")


@contextmanager
def _loading(pretrained: str | nn.Module) -> Iterator[None]:
    """Whatever the hub, the builders and the file formats raise, in one line."""
    try:
        yield
    except PLNDError:
        raise
    except Exception as error:
        raise cannot_load(pretrained if isinstance(pretrained, str) else "pretrained", error) from error
