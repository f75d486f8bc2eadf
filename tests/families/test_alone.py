"""A medium that goes through other weights alone than beside others is refused; all others are not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.alone import entered, refuse_heard_along, refuse_other_ways
from msao_compile.families.examples import Medium


class Model(nn.Module):
    """Sounds go through `own` or, where `split` and beside pictures, through `beside`."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.split = split
        self.tower, self.own, self.beside = (nn.Linear(2, 2) for _ in range(3))
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))])

    def forward(self, *media: str) -> None:
        given = torch.zeros(1, 2)
        if "image" in media:
            self.tower(given)
        if "audio" in media:
            (self.beside if self.split and "image" in media else self.own)(given)
        for layer in self.layers:
            layer(given)


def check(model: Model, *media: str) -> None:
    refuse_other_ways(model, partial(model, *media), {medium: partial(model, medium) for medium in media})


def test_a_medium_with_weights_for_itself_alone_is_refused_with_what_to_leave_out() -> None:
    with pytest.raises(UnsupportedFamily) as caught:
        check(Model(split=True), "image", "audio")
    assert "audio alone goes through own, which a request with pictures as well does not" in str(caught.value)
    assert "leave out audio_encoder or vision_encoder ([export] exclude)" in str(caught.value)


def test_one_way_for_all_is_not_refused_and_neither_is_one_medium() -> None:
    check(Model(split=False), "image", "audio")
    check(Model(split=True), "audio")


def test_a_layer_of_a_stack_is_entered_as_one() -> None:
    model = Model(split=False)
    assert entered(model, partial(model, "image")) == ["tower", "layers.0", "layers.1"]
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_a_feature_with_every_token_of_the_answer_is_refused() -> None:
    refuse_heard_along("Model", [Medium("audio", {}, (4,), 7), Medium("image", {}, (), None)])
    with pytest.raises(UnsupportedFamily, match="Model takes a feature of its audio with every token that it decodes"):
        refuse_heard_along("Model", [Medium("audio", {}, (4,), None)])
