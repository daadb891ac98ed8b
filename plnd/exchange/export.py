"""Writes an ordinary checkpoint with neurons zeroed, file by file: no model is built, no file is held in memory.

Every safetensors file is copied as it is, then the zeros are written into the copy. So everything else in it (names,
order, dtypes, metadata, the other numbers) is bit for bit what it was, and memory holds no more than the pages of one
tensor at a time. The same goes for what else can be done to neurons (`plnd.interventions`): a factor is multiplied into
rows and columns, a mean or a direction is added to biases, where there are some.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from plnd.errors import FamilyError, PLNDError
from plnd.exchange.new_biases import add_biases
from plnd.interventions import Intervention, scaled
from plnd.io import strict_json
from plnd.io.files import remove_left_over, whole_folder, write_bytes
from plnd.models.layout import Layout, Target
from plnd.models.loading import load_skeleton
from plnd.models.stored import INDEX, OTHER_WEIGHTS, SINGLE, Stored, checkpoint_folder, stored_tensors, weight_files
from plnd.neurons.neuron_set import NeuronSet, check_set
from plnd.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "plnd.json"
"""The file of an exported checkpoint that says what was zeroed."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def export(
    model: str | Path,
    neurons: NeuronSet,
    output: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = False,
    intervention: Intervention | None = None,
) -> dict[str, Any]:
    """Writes the model without `neurons` as an ordinary checkpoint: every parameter of theirs is zero in its files.

    The folder appears whole or not at all. Weights are zeroed in their stored dtype; configuration, tokenizer and all
    other files are carried over, but for weights in other formats, which would still hold the neurons.

    With `intervention` their values are changed otherwise. `scale` multiplies rows (and their biases) and columns.
    `mean` and `steer` make constants, which go into biases: of a row its own, of columns W·constants into the layer's.
    Where layers have none and the configuration has a switch for them (`attention_bias`, `mlp_bias`), they get one.

    Args:
        model: folder or hub name of a checkpoint in safetensors, one file or sharded.
        neurons: what to zero.
        output: folder to write, new or empty.
        revision: hub branch, tag or commit.
        overwrite: replace an earlier export there.
        trust_remote_code: run the Python code that comes with the model, to see where its neurons are.
        progress: show a bar over the bytes of weights.
        intervention: what becomes of the neurons' values, instead of zero (`plnd.interventions.Intervention`).

    Returns:
        What `plnd.json` in the folder says: the mask's SHA-256, language, neurons and counts by projection, the model,
        the number of tensors edited and of all, the files left out, and the same of the model if it was an export.

    Raises:
        ModelMismatchError: if the neurons were made for a model of another family, depth or width.
        FamilyError: if the family is unknown, or a weight with neurons is not in the files as the model has it; if a
            constant has no bias to go into.
        PLNDError: if there are no neurons, the checkpoint is not a whole, unquantised one in safetensors, or the folder
            cannot be written.
    """
    check_set(neurons)
    intervention = intervention or Intervention()
    neurons.check_some("zero" if intervention.kind == "zero" else "change")
    source, output = checkpoint_folder(str(model), revision), Path(os.path.realpath(output))
    remove_left_over(output)  # it may put an earlier export back
    _check_output(output, source, overwrite)
    files = weight_files(source)
    _check_space(output, sum((source / file).stat().st_size for file in files))
    stored = stored_tensors(source, files)
    skeleton = load_skeleton(str(source), trust_remote_code=trust_remote_code)
    _check_dense(source, skeleton)
    layout = Layout(skeleton)
    neurons.check_model(layout.description())
    intervention.check_model(layout.description())
    constant = neurons.indices if intervention.kind in ("mean", "steer") else ()
    layout, new = add_biases(source, layout, constant, stored, files, trust_remote_code)
    places = {**stored, **new.stored}
    edits = {} if intervention.kind == "steer" else locate(layout.model, places, zeros(layout, neurons))
    biases = _biases(source, layout.model, places, _constants(layout, neurons, intervention))
    carried, left_out = _other_files(source, files)
    record = {
        "format": "plnd.export",
        "plnd": __version__,
        "model": {"name": str(model), "revision": revision if os.path.isdir(model) else source.name},
        "mask": {
            "sha256": neurons.digest,
            "language": neurons.metadata.language,
            "neurons": len(neurons),
            "counts": neurons.counts(),
        },
        "intervention": intervention.record(),
        "tensors": {"edited": len(edits.keys() | biases.keys()), "all": len(places)},
        "left_out": left_out,
        "earlier": _earlier_record(source),
    }
    with whole_folder(output, overwrite=overwrite) as folder:
        for name in carried:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        factor = intervention.factor if intervention.kind == "scale" else None
        _write_weights(source, folder, new.names, stored, edits, factor, biases, progress)
        new.write(folder, stored, biases)
        write_bytes(json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n", folder / RECORD)
    return record


# what to zero, in the model and in its files


def zeros(layout: Layout, neurons: NeuronSet) -> dict[str, Tensor]:
    """Which elements of which parameters belong to neurons.

    Returns:
        Parameter name to a mask, bool, of as many dimensions as the parameter, that broadcasts to it.

    Raises:
        FamilyError: if such a parameter serves in two places, so that it cannot be zeroed in one.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in layout.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    masks: dict[str, Tensor] = {}
    for address, indices in neurons.items():
        target = layout.targets[address]
        for parameter in (getattr(target.plain, name) for name in target.names):
            axes = target.axes(parameter)
            name, *others = names[id(parameter)]
            if others:
                raise FamilyError(f"{address}: {name} is also {others[0]}; its neurons cannot be zeroed alone")
            shape = [size if axis in axes else 1 for axis, size in enumerate(parameter.shape)]
            mask = masks.get(name, torch.zeros(shape, dtype=torch.bool)).clone()
            mask.movedim(axes, tuple(range(len(axes))))[target.position(torch.from_numpy(indices).long())] = True
            masks[name] = mask
    return masks


def locate(model: PreTrainedModel, stored: Mapping[str, Stored], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Carries masks from a model's parameters over to the tensors of its files.

    Names go the way of transformers' own loading: its renamings, the body's prefix added or taken away, and, where a
    parameter is put together from several tensors (the experts of a mixture), its conversion in reverse.

    Args:
        model: the model on any device.
        stored: the tensors of its files by name.
        masks: parameter name to a mask that broadcasts to it.

    Returns:
        Tensor name to a mask that broadcasts to the tensor.

    Raises:
        FamilyError: if a parameter has no tensor, or one of another shape.
        PLNDError: if a tensor is not of a plain floating-point dtype.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    origins: dict[str, list[_Origin]] = {}
    for origin in _origins(model, stored, parameters):
        origins.setdefault(origin.parameter, []).append(origin)
    edits: dict[str, Tensor] = {}
    for name, mask in masks.items():
        found = origins.get(name, [])
        if not found:
            raise FamilyError(f"the checkpoint has no tensor for {name}, which the mask zeroes in part")
        for origin in found:
            if origin.converter is None and stored[origin.key].shape != tuple(parameters[name].shape):
                raise FamilyError(
                    f"{origin.key} is {list(stored[origin.key].shape)} in the checkpoint, but {name} is"
                    f" {list(parameters[name].shape)} in the model"
                )
        converted = _reversed(found, mask, model)
        for origin in found:
            part = converted.get(origin.loaded, mask) if origin.converter else mask
            edits[origin.key] = _narrowed(part, stored[origin.key].shape)
            _check_edit(origin.key, stored[origin.key], edits[origin.key])
    return edits


@dataclass(frozen=True)
class _Constant:
    """What a projection's bias is to hold because its neurons have constants.

    Attributes:
        target: the projection.
        bias: name of the parameter.
        weight: of columns, the weight's, whose columns times the constants are added; of rows None.
        index: where the neurons lie, along the weight's columns or in the bias, int64 [neurons].
        amounts: the constants, [neurons] float64.
    """

    target: Target
    bias: str
    weight: str | None
    index: Tensor
    amounts: Tensor


def _constants(layout: Layout, neurons: NeuronSet, intervention: Intervention) -> Iterator[_Constant]:
    """The constants that an intervention gives to neurons.

    Raises:
        FamilyError: naming a projection that has no bias for them.
    """
    if intervention.kind not in ("mean", "steer"):
        return
    names = {id(parameter): name for name, parameter in layout.model.named_parameters(remove_duplicate=False)}
    for address, indices in neurons.items():
        target = layout.targets[address]
        bias = None if target.experts is not None else getattr(target.plain, "bias", None)
        if bias is None:
            what = "fused experts have none" if target.experts is not None else "its layer has no bias"
            raise FamilyError(
                f"{address}: kind={intervention.kind} makes a constant of neurons, which goes into a bias, and {what}:"
                " take other projections, or kind=zero or scale"
            )
        amounts = intervention.amounts(address, target.width, indices)
        assert amounts is not None
        weight = names[id(target.stored)] if target.projection.axis == "column" else None
        yield _Constant(target, names[id(bias)], weight, target.storage(torch.from_numpy(indices).long()), amounts)


def _biases(
    source: Path, model: PreTrainedModel, stored: Mapping[str, Stored], constants: Iterable[_Constant]
) -> dict[str, Tensor]:
    """What is to be added to biases of the files, after they were zeroed where the neurons are: name to float64."""
    added: dict[str, Tensor] = {}
    for constant in constants:
        key = _whole_tensor(model, stored, constant.bias)
        total = added.setdefault(key, torch.zeros(stored[key].shape, dtype=torch.float64))
        if constant.weight is None:
            total[constant.index] += constant.amounts
            continue
        name = _whole_tensor(model, stored, constant.weight)
        weight = _opened(source / stored[name].file, stored[name], "r")
        columns = weight.index_select(constant.target.dim, constant.index).double()
        total += (columns if constant.target.dim else columns.T) @ constant.amounts
    return added


def _whole_tensor(model: PreTrainedModel, stored: Mapping[str, Stored], name: str) -> str:
    """The one tensor of the files that is a parameter as it is.

    Raises:
        FamilyError: if there is none.
    """
    shape = tuple(model.get_parameter(name).shape)
    found = list(locate(model, stored, {name: torch.ones([1] * len(shape), dtype=torch.bool)}))
    if len(found) != 1 or stored[found[0]].shape != shape:
        raise FamilyError(f"{name} is no tensor of its own in the checkpoint, so that no constant can be put into it")
    return found[0]


@dataclass(frozen=True)
class _Origin:
    """The way of one stored tensor into the model.

    Attributes:
        key: its name in the files.
        loaded: the same after transformers' renamings.
        converted: and after its conversion, if any.
        converter: that conversion.
        parameter: the parameter it becomes, or becomes part of.
    """

    key: str
    loaded: str
    converted: str
    converter: Any
    parameter: str


def _origins(model: PreTrainedModel, stored: Mapping[str, Stored], parameters: Mapping[str, Any]) -> Iterator[_Origin]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    transforms = get_model_conversion_mapping(model) or []
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    prefix = f"{model.base_model_prefix}."
    for key in stored:
        loaded = key
        for renaming in renamings:
            loaded = renaming.rename_source_key(loaded)[0]
        converted, used = loaded, None
        for converter in converters:
            converted, pattern = converter.rename_source_key(loaded)
            if pattern is not None:
                used = converter
                break
        # the body's prefix may be missing in the files, or stand there without need
        spellings = (converted, prefix + converted, converted.removeprefix(prefix))
        parameter = next((name for name in spellings if name in parameters), None)
        if parameter is not None:
            yield _Origin(key, loaded, converted, used, parameter)


def _reversed(origins: list[_Origin], mask: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    """The parts of a parameter's mask for the tensors that it is put together from, by their loaded names."""
    mask = mask.repeat([2 if size == 1 else 1 for size in mask.shape])  # some releases drop axes of one element
    ways = {(id(origin.converter), origin.converted): origin for origin in origins if origin.converter is not None}
    parts: dict[str, Tensor] = {}
    for origin in ways.values():
        try:
            back = origin.converter.reverse_transform()
            loaded, pattern = back.rename_source_key(origin.converted)
            back.add_tensor(loaded, origin.converted, pattern, mask)
            result = back.convert(loaded, model=model, config=model.config)
            parts |= result[0] if isinstance(result, tuple) else result  # and its errors, before transformers 5.3
        except Exception as error:  # whatever a conversion says of a mask that it was not made for
            raise FamilyError(
                f"{origin.key}: {_converted_otherwise(origin)} ({type(error).__name__}: {error})"
            ) from None
    for origin in origins:
        if origin.converter is not None and not isinstance(parts.get(origin.loaded), Tensor):
            raise FamilyError(f"{origin.key}: {_converted_otherwise(origin)}")
    for name in sorted(parts.keys() - {origin.loaded for origin in origins}):
        if parts[name].any():
            raise FamilyError(f"the checkpoint has no tensor for {name}, which the mask zeroes in part")
    return parts


def _narrowed(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A part of a mask whose free axes have two elements, with one there."""
    for axis, size in enumerate(shape[: mask.ndim]):
        if mask.shape[axis] == 2 != size:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _converted_otherwise(origin: _Origin) -> str:
    return f"transformers converts it into {origin.parameter} in a way that plnd cannot follow backwards"


def _check_edit(key: str, stored: Stored, mask: Tensor) -> None:
    if stored.dtype not in _BYTES:
        raise PLNDError(f"{key} is stored as {stored.dtype}, expected one of {', '.join(_BYTES)}: quantised weights"
                        " cannot be zeroed by row and column; use the checkpoint that they were made from")  # fmt: skip
    fits = len(stored.shape) == mask.ndim and all(m in (1, s) for m, s in zip(mask.shape, stored.shape, strict=True))
    if not fits:
        raise FamilyError(f"{key} is {list(stored.shape)} in the checkpoint, which is not how the model has it")


# reading a checkpoint


def _check_dense(source: Path, skeleton: PreTrainedModel) -> None:
    config = skeleton.config
    for part in (config, config.get_text_config()):
        quantisation = getattr(part, "quantization_config", None)
        if quantisation:
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
            raise PLNDError(
                f"{source}: quantised ({getattr(method, 'value', method)}); rows and columns can only be zeroed in the"
                " checkpoint that it was made from: export that one and quantise the result"
            )


def _earlier_record(source: Path) -> dict[str, Any] | None:
    """What was zeroed before, where the checkpoint is itself an export."""
    if not (source / RECORD).is_file():
        return None
    try:
        return strict_json.read(source / RECORD)
    except PLNDError as error:
        raise PLNDError(f"{error}; expected the record of an earlier export") from None


def _other_files(source: Path, files: list[str]) -> tuple[list[str], list[str]]:
    """What else lies in the folder: files to carry over, and other weights, which still hold the neurons, to leave."""
    carried: list[str] = []
    left_out: list[str] = []
    index = [] if files == [SINGLE] else [INDEX]
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if not path.is_file() or str(name) in (*files, RECORD) or any(part.startswith(".") for part in name.parts):
            continue
        weights = (*OTHER_WEIGHTS, ".safetensors", ".index.json")
        (left_out if str(name) not in index and name.name.endswith(weights) else carried).append(str(name))
    return carried, left_out


# writing one


def _check_output(output: Path, source: Path, overwrite: bool) -> None:
    if output == Path(os.path.realpath(source)) or output in Path(os.path.realpath(source)).parents:
        raise PLNDError(f"{output}: holds the checkpoint itself; choose another folder")
    if output.exists() and not output.is_dir():
        raise PLNDError(f"{output}: is a file, expected the name of a folder to write")
    if output.is_dir() and any(output.iterdir()):
        if not (output / RECORD).is_file():
            raise PLNDError(f"{output}: is not empty; choose a new folder")
        if not overwrite:
            raise PLNDError(f"{output}: holds an earlier export; choose a new folder, or --overwrite it")


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free if output.parent.is_dir() else needed
    if free < needed:
        raise PLNDError(f"{output}: {free:,} bytes are free there, but the weights need {needed:,}")


def _write_weights(
    source: Path,
    folder: Path,
    names: Mapping[str, str],
    stored: Mapping[str, Stored],
    edits: Mapping[str, Tensor],
    factor: float | None,
    biases: Mapping[str, Tensor],
    progress: bool,
) -> None:
    """Copies the files, and in the copies zeroes (or scales) what `edits` name and adds what `biases` say."""
    total = sum((source / file).stat().st_size for file in names)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        for file, name in names.items():
            shutil.copyfile(source / file, folder / name)
            for key in (key for key, place in stored.items() if place.file == file):
                if key in edits and factor is not None:
                    values = _opened(folder / name, stored[key], "r+")
                    values.copy_(torch.where(edits[key], scaled(values, factor), values))
                elif key in edits:
                    _write_zeros(folder / name, stored[key], edits[key].numpy())
                if key in biases:
                    values = _opened(folder / name, stored[key], "r+")
                    values.copy_(values.double() + biases[key])
            bar.update((source / file).stat().st_size)


def _write_zeros(path: Path, stored: Stored, mask: np.ndarray) -> None:
    """Zeroes the elements of one stored tensor where `mask`, broadcast to its shape, is true."""
    words = np.memmap(path, f"u{_BYTES[stored.dtype]}", "r+", offset=stored.offset, shape=stored.shape)
    np.copyto(words, 0, where=mask)
    words.flush()


def _opened(path: Path, stored: Stored, mode: Literal["r", "r+"]) -> Tensor:
    """One stored tensor, in its dtype, as it lies in the file: with `r+` what is written to it is written there."""
    kind = (
        "c" if mode == "r" else mode
    )  # torch takes no array that cannot be written to; this one's copy is thrown away
    words = np.memmap(path, f"<i{_BYTES[stored.dtype]}", kind, offset=stored.offset, shape=stored.shape)
    return torch.from_numpy(words).view(_DTYPES[stored.dtype])
