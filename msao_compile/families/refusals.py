"""What a config.json may say that is refused before anything is opened: code of its own, and quantised weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msao_compile.errors import CheckpointError, UnsupportedFamily
from msao_compile.families.agreement import readable

MODELOPT = "hf_quant_config.json"
"""Where NVIDIA ModelOpt writes what it did, beside config.json or instead of a section in it."""
_BITS_IN_NAME = {"fp8": 8, "fbgemm_fp8": 8, "finegrained_fp8": 8, "mxfp4": 4, "nvfp4": 4, "bitnet": 2, "fp_quant": 4}


def refuse_unusable(folder: Path, config: Mapping[str, Any], trusted: bool, place: str = "models.<name>") -> None:
    """Refuse a config that names remote code without the recipe's leave, or whose weights are quantised.

    Remote code is refused even where transformers has a class of its own for the family: which of the two answers for
    these weights is the user's to say, not ours. `place` is the model's table in the recipe.

    Raises:
        UnsupportedFamily: the config, or a config inside it, names remote code. CheckpointError: quantised weights.
    """
    if not trusted:
        _refuse_remote_code(folder / "config.json", config, place)
    for where, part in sections(config):
        told = part.get("quantization_config") or part.get("compression_config")
        if told:
            _refuse_quantised(folder / "config.json", f"{where}quantization_config", told, config)
    beside = readable(folder / MODELOPT)
    if beside.get("quantization"):
        _refuse_quantised(
            folder / MODELOPT, "quantization", {"quant_method": "modelopt", **beside["quantization"]}, config
        )


def sections(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config and every config inside it, each with its dotted path that ends in a dot; the outermost has none."""
    yield where, config
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in ("quantization_config", "compression_config", "auto_map"):
            yield from sections(value, f"{where}{key}.")


def names_remote_code(config: Mapping[str, Any]) -> bool:
    """Whether the config, or a config inside it, names code that is not transformers' own."""
    return any(part.get("auto_map") for _, part in sections(config))


def _refuse_remote_code(path: Path, config: Mapping[str, Any], place: str) -> None:
    for where, part in sections(config):
        told = part.get("auto_map")
        if not told:
            continue
        example = next((_reference(value) for value in told.values()), "") if isinstance(told, Mapping) else str(told)
        other = (
            f"or remove {where}auto_map, because transformers itself has {part['model_type']!r}"
            if _is_known(part.get("model_type"))
            else "or use a checkpoint in the form that transformers itself has"
        )
        raise UnsupportedFamily(
            f"{path}: {where}auto_map names remote code ({example}), which is not run unless the recipe says so; read "
            f"that code and set {place}.trust_remote_code = true, {other}"
        )


def _reference(value: object) -> str:
    """One entry of an auto_map: a reference, or a list of them with nulls (tokenizers)."""
    return next((str(one) for one in value if one), "") if isinstance(value, list) else str(value)


def _is_known(model_type: object) -> bool:
    """Asked only to word a refusal: the import costs half a second."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _refuse_quantised(path: Path, where: str, told: object, config: Mapping[str, Any]) -> None:
    section: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    method = str(section.get("quant_method") or _method(section))
    bits = _bits(method, section)
    made_from = _made_from(section, config)
    instead = f"{made_from}, the checkpoint it was made from" if made_from else "the checkpoint it was made from"
    raise CheckpointError(
        f"{path}: {where} says that the weights are quantised (method {method}"
        + (f", {bits} bits" if bits else "")
        + f"), which cannot be exported; use {instead}, in fp32, fp16 or bf16, and set the targets' precision in the "
        "recipe"
    )


def _method(section: Mapping[str, Any]) -> str:
    if section.get("load_in_4bit") or section.get("load_in_8bit"):
        return "bitsandbytes"
    if "config_groups" in section:
        return "compressed-tensors"
    return "not named"


def _bits(method: str, section: Mapping[str, Any]) -> str:
    """The widths a section tells of, as "4" or "4 and 8"; empty where it tells of none."""
    found = {section.get(key) for key in ("bits", "w_bit", "num_bits", "weight_bits", "nbits")}
    if section.get("load_in_4bit") or section.get("_load_in_4bit"):
        found.add(4)
    if section.get("load_in_8bit") or section.get("_load_in_8bit"):
        found.add(8)
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        found.add(weights.get("num_bits") if isinstance(weights, Mapping) else None)
    for name in (method, str(section.get("quant_algo") or "")):
        found.add(_BITS_IN_NAME.get(name.lower()))
    return " and ".join(str(bits) for bits in sorted(bits for bits in found if isinstance(bits, int)))


def _made_from(section: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    for value in (section.get("base_model"), section.get("model_name_or_path"), config.get("base_model_name_or_path"),
                  config.get("_name_or_path")):  # fmt: skip
        if isinstance(value, str) and value:
            return value
    return ""
