"""The lm-evaluation-harness model `plnd`: its own `hf` model with the neurons of a mask deactivated."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from plnd.deactivation import MODES, Mode, deactivate
from plnd.errors import PLNDError
from plnd.neurons import NeuronSet
from plnd.regions import Regions

CONTROLS = ("random",)


class PLNDLM(HFLM):
    """`lm_eval --model plnd --model_args mask=zh.safetensors[,regions=under,under=8][,control=random,seed=0]`.

    Everything else is `HFLM`: log-likelihoods and generation run on a model whose neurons were switched off once, after
    loading, so a request costs what it costs with `--model hf`.
    """

    def __init__(
        self,
        pretrained: Any = None,
        mask: str | NeuronSet | None = None,
        regions: str | None = None,
        under: int | None = None,
        gen: int | None = None,
        control: str | None = None,
        seed: int = 0,
        mode: Mode = "auto",
        revision: str | None = None,
        **hf_arguments: Any,
    ) -> None:
        """Loads the model and switches the neurons off.

        Args:
            pretrained: as for `hf`; by default the base model that the mask was made for, at its revision.
            mask: neurons artifact, or a `NeuronSet` from Python.
            regions: deactivate only these parts, joined by `+`: under, solve, solve_attn, solve_ffn, gen.
            under, gen: number of understanding and of generation blocks, where `regions` needs them.
            control: `random` deactivates as many randomly drawn neurons per block and projection as the mask has there.
            seed: of the control.
            mode: auto, weights or activations (`plnd.deactivated`).
            revision: as for `hf`.
            hf_arguments: every other argument of `hf`.

        Raises:
            PLNDError: if the mask cannot be read, was made for another model, or an argument makes no sense.
        """
        if mask is None:
            raise PLNDError("model_args need mask=FILE, a neurons artifact from `plnd select` or `plnd combine`")
        if control is not None and control not in CONTROLS:
            raise PLNDError(f"unknown control {control!r}: expected {', '.join(CONTROLS)}")
        if mode not in MODES:
            raise PLNDError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
        if regions is None and (under is not None or gen is not None):
            raise PLNDError("under= and gen= say how large the regions are: name some with regions=")
        self.mask = mask if isinstance(mask, NeuronSet) else NeuronSet.load(mask)
        neurons = self.mask
        if regions is not None:
            neurons = neurons.restrict(regions=Regions.parse(regions, under, gen))
        if control == "random":
            neurons = neurons.random_like(int(seed))
        self.neurons = neurons
        if pretrained is None:
            pretrained, revision = self.mask.model["name"], revision or self.mask.model["revision"]
        if pretrained is None:
            raise PLNDError("this mask does not name its base model: add pretrained=MODEL")
        super().__init__(pretrained, revision=revision or "main", **hf_arguments)
        deactivate(self.model, self.neurons, mode=mode)
        self.deactivation = {
            "mask": mask if isinstance(mask, str) else None,
            "mask_sha256": self.mask.digest,
            "language": self.mask.metadata["language"],
            "neurons": len(self.neurons),
            "of": self.neurons.total,
            "counts": self.neurons.counts(),
            "regions": regions,
            "under": under,
            "gen": gen,
            "control": control,
            "seed": int(seed) if control else None,
            "mode": mode,
        }
        answers = [self.neurons.digest, str(pretrained), revision, {k: str(v) for k, v in hf_arguments.items()}]
        self._identity = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()

    def get_model_info(self) -> dict:
        """What `hf` reports, and under `plnd` what was deactivated; both end in the results file."""
        return {**super().get_model_info(), "plnd": self.deactivation}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keeps this mask's answers in a table of their own within lm-eval's response cache.

        `--use_cache` keys on the request alone, so without this a mask could be served another mask's, or the plain
        model's, answers. Reader and writer of the cache share one `SqliteDict`, whose table every statement names.
        """
        store = cache_hook.dbdict
        if store is not None:
            if not hasattr(store, "tablename"):
                raise PLNDError(
                    "this lm-eval keeps its cache in a way that cannot tell masks apart: leave --use_cache out"
                )
            store.tablename = f"plnd_{self._identity}"
            store.conn.execute(f'CREATE TABLE IF NOT EXISTS "{store.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
            store.commit()
        super().set_cache_hook(cache_hook)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> PLNDLM:
        """As in lm-eval; on its command line bad input is one line and exit status 2."""
        return _one_line(lambda: super(PLNDLM, cls).create_from_arg_string(arg_string, additional_config))

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> PLNDLM:
        """As in lm-eval; on its command line bad input is one line and exit status 2."""
        return _one_line(lambda: super(PLNDLM, cls).create_from_arg_obj(arg_dict, additional_config))


def _one_line(create: Callable[[], PLNDLM]) -> PLNDLM:
    try:
        return create()
    except PLNDError as error:
        if "lm_eval._cli" not in sys.modules:  # imported by lm-eval's command line and by nothing else
            raise
        print(f"lm_eval --model plnd: {error}", file=sys.stderr)
        raise SystemExit(2) from None
