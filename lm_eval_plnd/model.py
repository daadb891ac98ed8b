"""The lm-evaluation-harness model `plnd`: its own `hf` model with neurons deactivated, by a mask or by role."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lm_eval.api.model import CacheHook

from lm_eval_plnd.documents import DocumentLM, in_one_line
from plnd import deactivation
from plnd.deactivation import MODES, Mode
from plnd.errors import PLNDError
from plnd.io.files import file_digest
from plnd.neurons.neuron_set import NeuronSet
from plnd.neurons.regions import Regions
from plnd.roles.deactivation import Choice
from plnd.roles.roles import ROLES, Roles

CONTROLS = ("random",)


class PLNDLM(DocumentLM):
    """`lm_eval --model plnd --model_args mask=zh.safetensors[,regions=under,under=8][,control=random,seed=0]`.

    Everything else is `HFLM`: log-likelihoods and generation run on a model whose neurons were switched off once, after
    loading, so a request costs what it costs with `--model hf`.

    Or `roles=xnli.roles.safetensors,deactivate=all_shared[,control=random,seed=0]`, or `deactivate=random,share=0.25`:
    each request runs without its own document's neurons of that role.
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
        roles: str | Roles | None = None,
        deactivate: str | None = None,
        share: float | None = None,
        **hf_arguments: Any,
    ) -> None:
        """Loads the model and switches the neurons off.

        Args:
            pretrained: as for `hf`; by default the base model that the mask (or the adapter) was made for, at its
                revision.
            mask: neurons artifact, or a `NeuronSet` from Python; may be left out where `peft` names an adapter.
            regions: deactivate only these parts, joined by `+`: under, solve, solve_attn, solve_ffn, gen.
            under, gen: number of understanding and of generation blocks, where `regions` needs them.
            control: `random` deactivates as many randomly drawn neurons per block and projection as the mask has there;
                with `roles`, as many of each block as the document's own.
            seed: of the control.
            mode: auto, weights or activations (`plnd.deactivated`).
            revision: as for `hf`.
            roles: roles artifact instead of a mask, or `Roles` from Python.
            deactivate: with `roles`, one of `plnd.roles.roles.ROLES`, or `random`.
            share: with `deactivate="random"`, the share of each block's neurons, drawn anew for every document.
            hf_arguments: every other argument of `hf`.

        Raises:
            PLNDError: if mask or roles cannot be read, were made for another model, or an argument makes no sense.
        """
        if roles is not None:
            if mask is not None:
                raise PLNDError("mask= and roles= both say what to deactivate: give one of them")
            if (regions, under, gen, mode) != (None, None, None, "auto"):
                raise PLNDError("regions=, under=, gen= and mode= go with mask=, not with roles=")
            self._by_role(pretrained, revision, roles, deactivate, share, control, int(seed), hf_arguments)
            return
        if deactivate is not None or share is not None:
            raise PLNDError("deactivate= and share= need roles=FILE, a roles artifact from `plnd roles`")
        if hf_arguments.get("peft"):
            import peft_plnd  # noqa: F401  PEFT then knows neuron-select adapters
        if mask is None and hf_arguments.get("peft"):
            if (regions, under, gen, control) != (None, None, None, None):
                raise PLNDError("regions=, under=, gen= and control= go with mask=; peft= alone deactivates nothing")
            self._tuned(pretrained, revision, hf_arguments)
            return
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
        deactivation.deactivate(self.model, self.neurons, mode=mode)
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
        self._identify(self.neurons.digest, pretrained, revision, hf_arguments)

    def _identify(self, digest: str | None, pretrained: Any, revision: str | None, hf_arguments: dict) -> None:
        """Names what this model answers as, for the response cache."""
        answers = [digest, str(pretrained), revision, {k: str(v) for k, v in hf_arguments.items()}]
        self._identity = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()

    def _tuned(self, pretrained: Any, revision: str | None, hf_arguments: dict[str, Any]) -> None:
        """An adapter without a mask: nothing is deactivated."""
        if pretrained is None:
            from peft import PeftConfig

            try:
                base = PeftConfig.from_pretrained(hf_arguments["peft"])
            except Exception as error:  # whatever PEFT and the hub raise for a folder that holds no adapter
                raise PLNDError(f"{hf_arguments['peft']}: not a PEFT adapter ({str(error).splitlines()[0]})") from None
            pretrained, revision = base.base_model_name_or_path, revision or base.revision
        super().__init__(pretrained, revision=revision or "main", **hf_arguments)
        self.deactivation = {"mask": None, "neurons": 0}
        self._identify(None, pretrained, revision, hf_arguments)

    def _by_role(
        self,
        pretrained: Any,
        revision: str | None,
        roles: str | Roles,
        role: str | None,
        share: float | None,
        control: str | None,
        seed: int,
        hf_arguments: dict[str, Any],
    ) -> None:
        if role is None:
            raise PLNDError(f"roles= needs deactivate=, one of {', '.join(ROLES)}, or random with share=")
        choice = Choice(role, None if share is None else float(share), control, seed)
        found = roles if isinstance(roles, Roles) else Roles.load(roles)
        if pretrained is None:
            pretrained, revision = found.model["name"], revision or found.model["revision"]
        if pretrained is None:
            raise PLNDError("these roles do not name their base model: add pretrained=MODEL")
        super().__init__(pretrained, revision=revision or "main", **hf_arguments)
        self.switch_off(found, choice)
        drawn = choice.role == "random" or choice.control is not None
        self.deactivation = {
            "roles": roles if isinstance(roles, str) else None,
            "roles_sha256": file_digest(roles) if isinstance(roles, str) else None,
            "languages": found.languages,
            "deactivate": choice.role,
            "share": choice.share,
            "control": choice.control,
            "seed": choice.seed if drawn else None,
        }

    def get_model_info(self) -> dict:
        """What `hf` reports, and under `plnd` what was deactivated; both end in the results file.

        With roles, `evaluated` says in how many examples so far, and how many neurons in each on average.
        """
        evaluated = {} if self.roles is None else {"evaluated": self.record()}
        return {**super().get_model_info(), "plnd": {**self.deactivation, **evaluated}}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keeps this mask's answers in a table of their own within lm-eval's response cache.

        `--use_cache` keys on the request alone, so without this a mask could be served another mask's, or the plain
        model's, answers. Reader and writer of the cache share one `SqliteDict`, whose table every statement names.
        """
        store = cache_hook.dbdict
        if store is not None and self.roles is not None:
            raise PLNDError(
                "--use_cache tells requests apart by their text, and roles= by their document: leave it out"
            )
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
        return in_one_line(lambda: super(PLNDLM, cls).create_from_arg_string(arg_string, additional_config))

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> PLNDLM:
        """As in lm-eval; on its command line bad input is one line and exit status 2."""
        return in_one_line(lambda: super(PLNDLM, cls).create_from_arg_obj(arg_dict, additional_config))
