"""What Triton must know of a model beforehand: config.pbtxt, with the union of all operations' arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping

from msao_compile.runtime.serve.cloud.served import Tensor, input_tensors, output_tensors
from msao_compile.runtime.wire.contract import PICTURE
from msao_compile.runtime.wire.kserve.parts import FIELDS

MOST_PICTURES = 32
"""So many pictures a prompt may bring to Triton, which wants each array's name beforehand."""
TYPES = {
    "FP32": "TYPE_FP32",
    "FP16": "TYPE_FP16",
    "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32",
    "UINT8": "TYPE_UINT8",
    "BOOL": "TYPE_BOOL",
}
KEEPALIVE = "--grpc-http2-min-recv-ping-interval-without-data=5000"
"""What `tritonserver` has to be given: its default takes the clients' keepalive for an attack."""


def config_text(name: str, own: Mapping[str, tuple[str, int]]) -> str:
    """config.pbtxt of a decoupled Python model on the CPU's side of Triton; engines choose their own devices.

    `own` are the model's own arrays that a prefill may bring, as `Served.inputs`.
    """
    pictures = {f"{PICTURE}{index:03d}": ("uint8", 1) for index in range(MOST_PICTURES)}
    inputs = [_entry(tensor, optional=tensor.name != FIELDS) for tensor in input_tensors({**own, **pictures})]
    outputs = [_entry(tensor, optional=False) for tensor in output_tensors()]
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            'backend: "python"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            f"input [\n{_joined(inputs)}\n]",
            f"output [\n{_joined(outputs)}\n]",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            "",
        ]
    )


def _entry(tensor: Tensor, optional: bool) -> str:
    dims = ", ".join(map(str, tensor.shape))
    may_miss = " optional: true" if optional else ""
    return f"  {{ name: {json.dumps(tensor.name)} data_type: {TYPES[tensor.datatype]} dims: [ {dims} ]{may_miss} }}"


def _joined(entries: list[str]) -> str:
    return ",\n".join(entries)
