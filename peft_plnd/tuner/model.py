"""Which modules get wrapped, and what can be done with the adapters of a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    BaseTuner,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
    find_parameter_name_by_module,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from peft_plnd.tuner.config import DEFAULT_FRACTION, RowColumnConfig
from peft_plnd.tuner.errors import NeuronSelectError
from peft_plnd.tuner.experts import NeuronSelectExperts, expert_shape
from peft_plnd.tuner.layer import NeuronSelectLayer, NeuronSelectLinear, check_name
from peft_plnd.tuner.selection import Indices, draw_rows, locate, module_names
from plnd.models.quantised import guard_order
from plnd.models.spread import check_whole


class RowColumnModel(BaseTuner):
    """A model of which only some rows and columns of its projections are trained.

    The config that the model keeps, `model.peft_config[name]`, says in `indices` what was chosen.

    Args:
        model: the model to adapt.
        config: what to tune.
        adapter_name: by default `default`.

    Raises:
        NeuronSelectError: if the neurons do not fit the model; the model is then as it was.
    """

    prefix = "neuron_select_"
    tuner_layer_cls = NeuronSelectLayer
    target_module_mapping = dict(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)  # type: ignore[arg-type]
    peft_config: dict[str, Any]  # name to RowColumnConfig

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Chooses the neurons, all of them before the first module is touched, and wraps the modules they lie in.

        A config object that is used again, on this model or another, chooses again: only a config that came with
        `indices`, as a saved one does, stays with them.

        Raises:
            NeuronSelectError: if torch takes no such name for an adapter.
        """
        check_name(adapter_name)
        check_whole(model)
        guard_order(model)
        config = self.peft_config[adapter_name]
        asked, left = getattr(config, "_targets", (config.target_modules, None))
        if left is not None and config.target_modules is left:
            config.target_modules = asked
        asked = config.target_modules
        if config.indices is not None and left is None:
            config.indices = locate(config.indices, model)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            return
        try:
            self._choose(config, model)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            config._targets = (asked, config.target_modules or set())

    def _choose(self, config: RowColumnConfig, model: nn.Module) -> None:
        """Fills in `indices`, and `target_modules` where it is not given."""
        _maybe_include_all_linear_layers(config, model)
        indices = self._chosen(config, model)
        given = config.target_modules
        if given is None:  # their last parts, to which PEFT applies layers_to_transform as it does not to whole names
            config.target_modules = {name.rpartition(".")[2] for name in indices}
        config.indices = {name: chosen for name, chosen in indices.items() if check_target_module_exists(config, name)}
        if given is None:
            config.target_modules = set(config.indices)

    def _chosen(self, config: RowColumnConfig, model: nn.Module) -> Indices:
        """The neurons that the config names or draws, by module, before `target_modules` and the like narrow them."""
        if config.neurons is not None:
            return locate(config.neurons, model)
        if config.fraction is None:
            if config.target_modules is None:
                named = ", ".join(f"{name}=" for name in config.sources[:-1])
                raise NeuronSelectError(f"no neurons named: give {named}, or {config.sources[-1]}= with seed=")
            warnings.warn(f"no neurons named: training a random {DEFAULT_FRACTION:.1%} of the neurons", stacklevel=2)
        return self._drawn(config, model)

    def _drawn(self, config: RowColumnConfig, model: nn.Module) -> Indices:
        """Output rows at random, of the targeted modules."""
        fraction = DEFAULT_FRACTION if config.fraction is None else config.fraction
        return draw_rows(self._matched(config, model), model, fraction, config.seed)

    def _matched(self, config: RowColumnConfig, model: nn.Module) -> list[str]:
        """The modules that `target_modules` names, else PEFT's default for the model."""
        if config.target_modules is None:
            self._prepare_adapter_config(config, self.get_model_config(model))
        return [name for name in module_names(model) if check_target_module_exists(config, name)]

    @staticmethod
    def _check_target_module_exists(  # type: ignore[override]
        peft_config: RowColumnConfig, key: str
    ) -> Any:
        """As PEFT matches names, and there are neurons to train in the module."""
        matched = check_target_module_exists(peft_config, key)
        return matched if not matched or peft_config.indices is None or key in peft_config.indices else False

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: RowColumnConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Wraps one module, or adds an adapter to one that is wrapped already."""
        assert peft_config.indices is not None
        if current_key not in peft_config.indices:
            raise NeuronSelectError(f"the adapter has weights for {current_key}, but its config names no neurons there")
        layer: NeuronSelectLinear | NeuronSelectExperts
        if isinstance(target, NeuronSelectLinear | NeuronSelectExperts):
            layer = target
        else:
            kind = NeuronSelectLinear if expert_shape(target) is None else NeuronSelectExperts
            layer = kind(target, adapter_name, **get_quantization_kwargs(self))
        layer.update_layer(
            adapter_name,
            peft_config.indices[current_key],
            bias=peft_config.bias == "selected",
            init_weights=peft_config.init_weights,
            inference_mode=peft_config.inference_mode,
        )
        if layer is not target:
            if adapter_name not in self.active_adapters:  # an additional adapter is not trainable by itself
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """As PEFT does, which asks what it unwraps for its `weight`; experts and heads of several layers have none."""
        plain = getattr(child, "base_layer", child)
        if hasattr(new_module, "base_layer") or hasattr(plain, "weight"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hands `adapter_names`, an adapter (or `__base__` for none) for each row of the batch, to all layers."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_adapter_names(names, kwargs)

        def hand_over(module: nn.Module, given: Any, more: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return given, {**more, "adapter_names": list(names)}

        handles = [
            module.register_forward_pre_hook(hand_over, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (NeuronSelectLayer, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, names: Any, kwargs: Mapping[str, Any]) -> None:
        """Refuses adapters by row that cannot be told apart, in PEFT's words where it has some.

        Raises:
            NeuronSelectError: saying why.
        """
        if self.training:
            raise NeuronSelectError("Cannot pass `adapter_names` when the model is in training mode.")
        if (
            isinstance(names, str)
            or (kwargs.get("num_beams") or 1) > 1
            or (kwargs.get("num_return_sequences") or 1) > 1
        ):
            raise NeuronSelectError(
                "adapter_names= is a list, a name for each row, and goes with one beam and sequence"
            )
        if unknown := sorted(set(names) - {*self.peft_config, "__base__"}):
            raise NeuronSelectError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")

    def _add_modules_to_save_to_tie(self, peft_config: RowColumnConfig, tied_weight_keys: list[str]) -> None:
        """One copy for both, where input and output embeddings are one weight and `modules_to_save` names either."""
        embedding = find_parameter_name_by_module(self.model, self.model.get_input_embeddings())  # type: ignore[operator]
        peft_config.modules_to_tie = set(tied_weight_keys)  # type: ignore[attr-defined]
        others = [
            name for name in peft_config.modules_to_save or ()
            if not any(key == name or key.endswith(f".{name}") for key in (*tied_weight_keys, embedding))
        ]  # fmt: skip
        peft_config.modules_to_save = [*others, embedding]

    def _add_targets_to_tie(self, peft_config: RowColumnConfig, tied_weight_keys: list[str]) -> None:
        """Rows of an output embedding have no counterpart in an adapter of the input embedding, which is not linear."""
        raise NeuronSelectError(
            f"ensure_weight_tying: the adapter trains neurons in {', '.join(tied_weight_keys)}, tied to the input"
            " embedding, which is no linear layer; leave it out, or name the embedding in modules_to_save"
        )

    @contextmanager
    def _without_selected(self) -> Iterator[None]:
        """Shows PEFT `bias="selected"` as "none": what it does with biases is for those in place, not deltas."""
        selected = [config for config in self.peft_config.values() if config.bias == "selected"]
        for config in selected:
            config.bias = "none"
        try:
            yield
        finally:
            for config in selected:
                config.bias = "selected"

    def _check_merge_allowed(self) -> None:
        """Asks every layer before the first one is merged."""
        super()._check_merge_allowed()
        for layer in self.model.modules():
            if isinstance(layer, NeuronSelectLayer):
                layer.check_merge()

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        with self._without_selected():
            super()._mark_only_adapters_as_trainable(model)

    def _check_new_adapter_config(self, config: Any) -> None:
        with self._without_selected():
            super()._check_new_adapter_config(config)

    def disable_adapter_layers(self) -> None:
        """Switches all adapters off; the model is then the base model, selected biases included."""
        with self._without_selected():
            super().disable_adapter_layers()

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Adds an adapter that changes the weights by the weighted sum of what `adapters` change, exactly.

        It has the union of their neurons. An entry that one adapter has in a column and the union in a row too belongs
        to the row, as everywhere.

        Args:
            adapters: names of neuron-select adapters of this model.
            weights: one number for each; negative ones subtract.
            adapter_name: of the new adapter; nothing happens if there is one of this name.
            combination_type: `linear`, the only one.

        Raises:
            NeuronSelectError: if an adapter does not exist, a number is missing, or an adapter trains a module in full
                (`modules_to_save`), which the sum would leave out.
        """
        if adapter_name in self.peft_config:
            return
        check_name(adapter_name)
        self._check_weighted(adapters, weights, combination_type)
        configs: list[RowColumnConfig] = [self.peft_config[name] for name in adapters]
        indices: dict[str, dict[str, list[int]]] = {}
        for config in configs:
            for module, chosen in (config.indices or {}).items():
                union = indices.setdefault(module, {})
                for axis, values in chosen.items():
                    union[axis] = sorted({*union.get(axis, ()), *values})
        biased = any(config.bias == "selected" for config in configs)
        self.peft_config[adapter_name] = configs[0].with_indices(indices, "selected" if biased else "none")
        self.inject_adapter(self.model, adapter_name)
        for layer in self.model.modules():
            if isinstance(layer, NeuronSelectLayer) and adapter_name in layer._get_available_adapters():
                _widen(layer, adapter_name, adapters)
                layer.fill(adapter_name, dict(zip(adapters, weights, strict=True)))

    def _check_weighted(self, adapters: list[str], weights: list[float], combination_type: str) -> None:
        for name in adapters:
            if name not in self.peft_config:
                raise NeuronSelectError(f"Adapter {name} does not exist")
        if not adapters or len(adapters) != len(weights) or len(set(adapters)) != len(adapters):
            raise NeuronSelectError(
                f"{len(adapters)} adapters and {len(weights)} weights: expected one weight for each"
            )
        if combination_type != "linear":
            raise NeuronSelectError(f"combination_type={combination_type!r}: expected 'linear', which is exact here")
        for name, module in self.model.named_modules():
            if isinstance(module, ModulesToSaveWrapper) and module.modules_to_save.keys() & set(adapters):
                raise NeuronSelectError(
                    f"{name}: an adapter trains it in full (modules_to_save), which a sum of neurons would leave out"
                )


def _widen(layer: NeuronSelectLayer, adapter: str, others: list[str]) -> None:
    """Changes of `adapter`, which are new and in the base's dtype, in the widest dtype of those of other adapters."""
    for name in layer.adapter_layer_names:
        parts = getattr(layer, name)
        if adapter in parts:
            for other in {*others} & {*parts.keys()}:
                wide = torch.promote_types(parts[adapter].dtype, parts[other].dtype)
                parts[adapter].data = parts[adapter].data.to(wide)
