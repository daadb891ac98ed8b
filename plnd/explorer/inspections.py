"""Reads what `plnd neuron --json` wrote, trusting nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from plnd.addresses import PROJECTIONS, split_address
from plnd.errors import PLNDError
from plnd.inspection.profiles import FORMAT, IMPORTANCE, MEAN_SIZE, VERSION, Inspection
from plnd.io import strict_json


def load_inspection(path: str | Path) -> Inspection:
    """An inspection as it was saved (docs/neurons.md).

    Raises:
        PLNDError: if the file cannot be read, is something else, of a newer version, or a field is not what it should
            be.
    """
    found = strict_json.read(path)
    if found.get("format") != FORMAT:
        raise PLNDError(f"{path}: format {found.get('format')!r:.40}, expected {FORMAT}, as plnd neuron --json writes")
    if found.get("version") != VERSION:
        raise PLNDError(f"{path}: version {found.get('version')!r:.40}, expected {VERSION}: update plnd, or write anew")
    try:
        inspection = TypeAdapter(Inspection).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise PLNDError(f"{path}: field {where}: {first['msg']}; the file is damaged") from None
    if inspection.measure not in (IMPORTANCE, MEAN_SIZE):
        raise PLNDError(f"{path}: measure {inspection.measure!r:.40}, expected {IMPORTANCE} or {MEAN_SIZE}")
    for neuron in inspection.neurons:
        if not is_address(neuron.address) or neuron.index < 0:
            raise PLNDError(f"{path}: neuron {neuron.name!r:.60}, expected block, projection and number, 5.down_proj.3")
    return inspection


def is_address(text: str) -> bool:
    """Whether this may be an address of some model."""
    block, projection = split_address(text)
    named = re.fullmatch(r"((en|de)coder\.)?[0-9]{1,6}(\.cross|\.shared)?", block)
    return projection in PROJECTIONS and named is not None
