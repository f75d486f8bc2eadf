"""Chat completions in this process: the runtime's own answers, in OpenAI's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.chat import Service

from .conftest import body, image

PATH = "/v1/chat/completions"
PROMPT = "what color is the circle?"


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_the_answer_is_the_runtimes_own(client: TestClient, runtime: Runtime, picture: Path, data_url: str) -> None:
    wanted = runtime.generate(PROMPT, image=picture, max_new_tokens=6)
    asked = body([image(data_url), {"type": "text", "text": PROMPT}], max_tokens=6)
    found = client.post(PATH, json=asked).json()
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    assert found["choices"][0]["finish_reason"] == "length"
    prompt = wanted.prompt_tokens or 0
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": 6, "total_tokens": prompt + 6}
    assert {name: found["msao"][name] for name in ("route", "verified")} == {"route": "edge", "verified": False}
    assert {"preprocess", "vision_encoder", "decoder"} <= set(found["msao"]["timing"]["modules_ms"])


def test_the_stream_is_the_answer_in_pieces(client: TestClient, runtime: Runtime) -> None:
    wanted = runtime.generate(PROMPT, max_new_tokens=6)
    reply = client.post(PATH, json=body(max_tokens=6, stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = events(reply.text)
    first, *middle, last, usage = parts
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"]["content"] for part in middle) == wanted.text
    assert (last["choices"][0]["finish_reason"], last["msao"]["route"]) == ("length", "edge")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    assert all(part["usage"] is None for part in parts[:-1])
    assert len({(part["id"], part["created"], part["object"]) for part in parts}) == 1


def test_a_stream_without_usage_has_none(client: TestClient) -> None:
    assert all("usage" not in part for part in events(client.post(PATH, json=body(stream=True)).text))


def test_a_picture_below_the_allowed_folder_is_read(client: TestClient, picture: Path, data_url: str) -> None:
    replies = [
        client.post(PATH, json=body([image(url), {"type": "text", "text": PROMPT}])).json()
        for url in (picture.as_uri(), data_url)
    ]
    assert replies[0]["choices"] == replies[1]["choices"]


@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_a_route_is_taken_where_it_is_asked_for(client: TestClient, route: str) -> None:
    found = client.post(PATH, json=body(route=route)).json()
    assert (found["msao"]["route"], found["msao"]["reason"]) == (route, "asked for")
    assert found["usage"]["prompt_tokens"] > 0


def test_a_model_may_be_asked_by_its_own_name(client: TestClient) -> None:
    by_task, by_model = (client.post(PATH, json=body(model=name)).json() for name in ("vqa", "edge"))
    assert by_task["choices"] == by_model["choices"]
    assert by_model["msao"]["reason"] == "auto: edge is the first route of edge that runs here"


def test_stop_sequences_end_the_answer(client: TestClient) -> None:
    whole = client.post(PATH, json=body(max_tokens=12)).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:2]
    for given in (stop, [stop, "never said"]):
        choice = client.post(PATH, json=body(max_tokens=12, stop=given)).json()["choices"][0]
        assert choice["message"]["content"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_the_same_seed_draws_the_same_answer_and_none_draws_anew(client: TestClient) -> None:
    def drawn(**more: Any) -> str:
        asked = body(temperature=2, max_tokens=12, **more)
        return str(client.post(PATH, json=asked).json()["choices"][0]["message"]["content"])

    assert drawn(seed=5) == drawn(seed=5) != drawn(seed=6)
    assert drawn() != drawn()


def test_turns_of_system_user_and_assistant_reach_the_template(client: TestClient, runtime: Runtime) -> None:
    turns = [
        {"role": "developer", "content": "be short", "name": None},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None},
        {"role": "user", "content": PROMPT},
    ]
    found = client.post(PATH, json={"model": "vqa", "messages": turns, "max_completion_tokens": 4, "n": 1}).json()
    roles = [{**turn, "role": turn["role"].replace("developer", "system")} for turn in turns]
    wanted = runtime.generate([{"role": turn["role"], "content": turn["content"]} for turn in roles], max_new_tokens=4)
    assert found["choices"][0]["message"]["content"] == wanted.text
    assert found["usage"]["prompt_tokens"] == wanted.prompt_tokens


def test_without_a_limit_the_answer_fills_the_cache(client: TestClient, runtime: Runtime) -> None:
    asked = body()
    del asked["max_tokens"]
    assert client.post(PATH, json=asked).json()["usage"]["total_tokens"] == runtime.session("edge").facts.kv_capacity


def test_after_each_request_nothing_is_held(client: TestClient, service: Service) -> None:
    for more in ({}, {"stream": True}, {"max_tokens": 9999}, {"stream": True, "max_tokens": 9999}, {"model": "x"}):
        client.post(PATH, json=body(**more))
        assert service.door.inside == 0
        assert not any(lane.turn.locked() for lane in service.offers.lanes.values())


def test_models_are_the_tasks_and_the_models_with_their_routes(client: TestClient) -> None:
    found = client.get("/v1/models").json()
    assert [(model["id"], model["object"]) for model in found["data"]] == [("vqa", "model"), ("edge", "model")]
    assert {"edge", "cloud", "split"} <= set(found["data"][0]["msao"]["routes"])
    assert client.get("/v1/models/vqa").json() == found["data"][0]
