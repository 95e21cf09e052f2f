"""One interface, three engines: this process, vLLM, and a server of completions."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cai import adapters
from cai.artifacts import Artifact
from cai.choices import EngineName
from cai.endpoint import Client
from cai.engines import columns
from cai.engines import vllm as vllm_engine
from cai.engines.endpoint import EndpointEngine
from cai.engines.transformers import MAX_BATCH_TOKENS, TransformersEngine
from cai.engines.vllm import VLLMEngine
from cai.errors import UserError
from cai.low_rank import lora_layers
from cai.model_config import EngineConfig, VLLMConfig
from cai.models import Models, identity, role_key
from tests.conftest import byte_tokenizer
from tests.served import Sent, refusing, server_config, serving
from tests.test_models import local
from tests.tiny import hardware, lora, tiny_model
from tests.vllm_like import TinyVLLM

EOS = byte_tokenizer().eos_token_id
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
CONTINUATIONS = [[20, 21], [22], [23, 24, 25]]
SETTINGS = VLLMConfig(kv_cache_gib=0.25, num_devices=1, eager=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))


def plain(max_context: int = 250) -> TransformersEngine:
    return TransformersEngine(tiny_model(seed=0), eos_id=EOS, max_context=max_context)


def by_vllm() -> EngineConfig:
    return EngineConfig(name=EngineName.vllm, vllm=SETTINGS, server=None)


def by_server(url: str, **changes: object) -> EngineConfig:
    return EngineConfig(name=EngineName.endpoint, vllm=None, server=server_config(url, **changes))


def slow_score(model: torch.nn.Module, prompt: list[int], own: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + own])).logits[0].double()
    chosen = [logits[len(prompt) - 1 + i].log_softmax(-1)[t] for i, t in enumerate(own)]
    return float(sum(chosen))


def test_score_is_the_sum_over_the_continuation_whatever_the_batch() -> None:
    engine = plain()
    found = engine.score(PROMPTS, CONTINUATIONS)
    for prompt, own, total in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        assert total == pytest.approx(slow_score(engine.model, prompt, own), abs=1e-4)
        assert engine.score([prompt], [own]) == pytest.approx([total], abs=1e-4)
    assert engine.score([], []) == []


@pytest.mark.parametrize("own_pass", [True, False])
def test_texts_that_begin_alike_are_scored_as_if_alone(own_pass: bool) -> None:
    engine = plain(max_context=1000)
    if not own_pass:
        engine.model.model.layers[0].register_forward_hook(lambda *_: None)
    opening, turns = [(7 * i) % 290 + 3 for i in range(90)], [[40] * 70, [41] * 65]
    prompts = [opening + turn for turn in turns for _ in range(2)] + [[5]]
    continuations = [[50 + i, *range(60, 63 + 9 * i)] for i in range(5)]
    found = engine.score(prompts, continuations)
    for prompt, own, total in zip(prompts, continuations, found, strict=True):
        assert total == pytest.approx(slow_score(engine.model, prompt, own), abs=1e-3)


def test_other_models_score_in_sorted_batches_of_bounded_size() -> None:
    engine = plain(max_context=1000)
    shapes = []
    engine.model.model.layers[0].register_forward_hook(lambda _, given, __: shapes.append(given[0]))
    prompts = [[5 + i] * (1 + (237 * i) % 400) for i in range(12)]
    continuations = [[9] * (1 + (91 * i) % 300) for i in range(12)]
    found = engine.score(prompts, continuations)
    sizes = [(len(hidden), hidden.shape[1]) for hidden in shapes]
    assert sum(rows for rows, _ in sizes) == 12
    assert len(sizes) < 12
    assert [width for _, width in sizes] == sorted((width for _, width in sizes), reverse=True)
    assert all(rows * width <= MAX_BATCH_TOKENS for rows, width in sizes)
    for prompt, own, total in zip(prompts, continuations, found, strict=True):
        assert total == pytest.approx(slow_score(engine.model, prompt, own), abs=2e-3)


def test_columns_keep_what_was_asked_for_and_nothing_else() -> None:
    found = columns([{1: -1.0, 3: -3.0, 2: -2.0}], vocab_size=5, candidates=[3, 1])
    assert found[0, [1, 3]].tolist() == [-1.0, -3.0]
    assert torch.isnan(found[0, [0, 2, 4]]).all()
    assert torch.isnan(columns([{1: -1.0}], vocab_size=3, candidates=None)[0, [0, 2]]).all()
    with pytest.raises(KeyError):
        columns([{1: -1.0}], vocab_size=3, candidates=[2])


# A server of completions: vLLM's answers, computed by the tiny model.


def by_endpoint(url: str, adapter: Path | None = None) -> EndpointEngine:
    return EndpointEngine(
        Client(server_config(url, model="tiny")),
        name="tiny",
        eos_id=EOS,
        max_context=250,
        vocab_size=300,
        adapter=adapter,
    )


def test_a_server_s_numbers_are_those_of_this_process(tiny_folder: Path) -> None:
    engine = Models(hardware()).base(local(tiny_folder)).generator()
    with TinyVLLM(folder=tiny_folder).serving() as server:
        remote = by_endpoint(server.url)
        for temperature in (0.0, 0.7, 1.0):
            told = {"seeds": [4, 5, 6], "max_new_tokens": 6, "temperature": temperature}
            here = [engine.sample([p], **told | {"seeds": [s]})[0] for p, s in
                    zip(PROMPTS, (4, 5, 6), strict=True)]  # fmt: skip
            there = remote.sample(PROMPTS, **told)
            assert [t.ids for t in there] == [t.ids for t in here]
            assert [t.finished for t in there] == [t.finished for t in here]
            for one, other in zip(there, here, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        found = remote.next_token_logprobs(PROMPTS, candidates=[3, 40])
        expected = engine.next_token_logprobs(PROMPTS)
        assert torch.allclose(found[:, [3, 40]], expected[:, [3, 40]], atol=1e-5)
        assert torch.isnan(found[:, 0]).all()
        scores = remote.score(PROMPTS, CONTINUATIONS)
        assert scores == pytest.approx(engine.score(PROMPTS, CONTINUATIONS), abs=1e-4)
        num = len(server.asked)
        assert remote.score(PROMPTS, CONTINUATIONS) == scores
        assert len(server.asked) == num  # seeds, prompts and settings are the same: from the cache
    assert remote.fits([1] * 240, 10)
    assert not remote.fits([1] * 240, 11)


def test_a_server_whose_logprobs_ignore_the_temperature_is_found_out(tiny_folder: Path) -> None:
    with TinyVLLM(folder=tiny_folder, follows_temperature=False).serving() as server:
        remote = by_endpoint(server.url)
        told = {"seeds": [1], "max_new_tokens": 2}
        assert remote.sample(PROMPTS[:1], temperature=1.0, **told)
        with pytest.raises(UserError, match="--logprobs-mode processed_logprobs"):
            remote.sample(PROMPTS[:1], temperature=0.5, **told)


def test_a_server_that_cannot_do_it_says_what_is_needed() -> None:
    with serving(lambda *_: refusing(400, "prompt must be a string")) as server:
        with pytest.raises(UserError, match=r"refuses .* model tiny: prompt must be a string"):
            by_endpoint(server.url).score(PROMPTS, CONTINUATIONS)
        with pytest.raises(UserError, match="needs the probabilities of all its tokens"):
            by_endpoint(server.url).next_token_logprobs(PROMPTS)
    few = Sent(body={"choices": [{"logprobs": {"top_logprobs": [{"token_id:3": -1.0}]}}]})
    with (
        serving(lambda *_: few) as server,
        pytest.raises(UserError, match="no log-probability of token 40"),
    ):
        by_endpoint(server.url).next_token_logprobs(PROMPTS, candidates=[3, 40])
    short = Sent(body={"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}]})
    with (
        serving(lambda *_: short) as server,
        pytest.raises(UserError, match="sent 2 log-probabilities for 6 tokens"),
    ):
        by_endpoint(server.url).score(PROMPTS[:1], CONTINUATIONS[:1])


# vLLM, in its absence: what it is told and how its answers are read.


class FakeVLLM:
    """Stands in for the package: keeps what it is given, answers by a script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[dict[str, Any]] = []
        self.calls: list[SimpleNamespace] = []
        self.outputs: list[Any] = []
        self.removed: list[int] = []
        self.llm_engine = self
        module = types.ModuleType("vllm")
        module.LLM = self._load  # type: ignore[attr-defined]
        module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
        request = types.ModuleType("vllm.lora.request")
        request.LoRARequest = SimpleNamespace  # type: ignore[attr-defined]
        for name, one in (
            ("vllm", module), ("vllm.lora", types.ModuleType("vllm.lora")),
            ("vllm.lora.request", request),
        ):  # fmt: skip
            monkeypatch.setitem(sys.modules, name, one)

    def _load(self, **settings: Any) -> FakeVLLM:
        self.loaded.append(settings)
        return self

    def remove_lora(self, number: int) -> None:
        self.removed.append(number)

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool, lora_request: Any) -> Any:
        assert not use_tqdm
        self.calls.append(SimpleNamespace(prompts=prompts, params=params, adapter=lora_request))
        return self.outputs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVLLM:
    vllm_engine._load.cache_clear()
    vllm_engine._adapter.cache_clear()
    for name in vllm_engine.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, vllm_engine.ENVIRONMENT[name])  # undone after the test
    yield FakeVLLM(monkeypatch)
    vllm_engine._load.cache_clear()
    vllm_engine._adapter.cache_clear()


def in_vllm(adapter: Path | None = None, **changes: Any) -> VLLMEngine:
    values = {
        "folder": Path("/models/tiny"),
        "dtype": torch.bfloat16,
        "eos_id": EOS,
        "max_context": 250,
        "window": 4096,
        "vocab_size": 300,
        "lora": lora(rank=4),
        "adapter": adapter,
    }
    return VLLMEngine(SETTINGS, **(values | changes))


def logprobs(**values: float) -> dict[int, SimpleNamespace]:
    return {int(name[1:]): SimpleNamespace(logprob=value) for name, value in values.items()}


def test_vllm_is_loaded_once_with_the_settings_that_scoring_needs(fake: FakeVLLM) -> None:
    in_vllm()
    in_vllm(adapter=Path("/a"))
    (settings,) = fake.loaded
    assert settings["model"] == "/models/tiny"
    assert settings["dtype"] == "bfloat16"
    assert settings["hf_overrides"] == {"head_dtype": "float32"}
    assert settings["logprobs_mode"] == "processed_logprobs"
    assert settings["generation_config"] == "vllm"
    assert settings["enable_prefix_caching"]
    assert settings["max_lora_rank"] == 8
    assert settings["lora_target_modules"] == lora().target_modules
    assert settings["max_model_len"] == 251
    assert settings["kv_cache_memory_bytes"] == 2**28
    assert "trust_remote_code" not in settings
    in_vllm(lora=lora(rank=20), max_context=4096)
    assert (fake.loaded[1]["max_lora_rank"], fake.loaded[1]["max_model_len"]) == (32, 4096)
    with pytest.raises(UserError, match="rank 512 at most"):
        in_vllm(lora=lora(rank=600))


def test_vllm_samples_a_row_from_its_own_seed_until_the_end_token(fake: FakeVLLM) -> None:
    ended = [logprobs(t7=-0.5, t9=-0.1), {EOS: SimpleNamespace(logprob=-0.25)}]
    fake.outputs = [
        SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7, EOS], logprobs=ended)]),
        SimpleNamespace(outputs=[SimpleNamespace(token_ids=[8], logprobs=[logprobs(t8=-2.0)])]),
    ]
    found = in_vllm().sample(PROMPTS[:2], seeds=[3, 4], max_new_tokens=9, temperature=0.7)
    assert [(t.ids, t.logprobs, t.logprob, t.finished) for t in found] == [
        ((7, EOS), (-0.5, -0.25), -0.75, True),
        ((8,), (-2.0,), -2.0, False),
    ]
    (call,) = fake.calls
    assert call.prompts == [{"prompt_token_ids": prompt} for prompt in PROMPTS[:2]]
    assert [p.seed for p in call.params] == [3, 4]
    assert {(p.temperature, p.max_tokens, p.ignore_eos) for p in call.params} == {(0.7, 9, True)}
    assert all(p.stop_token_ids == [EOS] for p in call.params)
    assert not any(hasattr(p, "top_p") or hasattr(p, "top_k") for p in call.params)
    assert in_vllm().sample([], seeds=[], max_new_tokens=1, temperature=1.0) == []


def test_vllm_reads_candidates_and_whole_vocabularies(fake: FakeVLLM) -> None:
    one = SimpleNamespace(outputs=[SimpleNamespace(logprobs=[logprobs(t3=-1.0, t5=-2.0, t9=-9.0)])])
    fake.outputs = [one]
    found = in_vllm().next_token_logprobs(PROMPTS[:1], candidates=[5, 3])
    assert found[0, [3, 5]].tolist() == [-1.0, -2.0]
    assert math.isnan(found[0, 9])
    assert fake.calls[0].params[0].logprob_token_ids == [5, 3]
    whole = in_vllm().next_token_logprobs(PROMPTS[:1])
    assert whole[0, 9] == -9.0
    assert fake.calls[1].params[0].logprobs == -1


def test_vllm_scores_the_continuation_only(fake: FakeVLLM) -> None:
    places = [None, *(logprobs(**{f"t{t}": -float(t)}) for t in (6, 7, 8, 20, 21))]
    fake.outputs = [SimpleNamespace(prompt_logprobs=places)]
    assert in_vllm().score([PROMPTS[0]], [CONTINUATIONS[0]]) == [-41.0]
    assert fake.calls[0].prompts == [{"prompt_token_ids": [5, 6, 7, 8, 20, 21]}]
    assert fake.calls[0].params[0].prompt_logprobs == 0


def test_vllm_names_each_adapter_by_a_number_of_its_own(fake: FakeVLLM) -> None:
    fake.outputs = [SimpleNamespace(prompt_logprobs=[None, logprobs(t6=-1.0)])]
    for folder in (None, Path("/a"), Path("/b"), Path("/a")):
        in_vllm(adapter=folder).score([[5]], [[6]])
    base, first, second, again = (call.adapter for call in fake.calls)
    assert base is None
    assert (first.lora_path, second.lora_path) == ("/a", "/b")
    assert first.lora_int_id != second.lora_int_id
    assert first.lora_name != second.lora_name
    assert again == first


def test_vllm_missing_or_failing_says_what_to_type(
    fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: Any) -> None:
        raise ValueError("No available memory for the cache blocks.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fails)
    with pytest.raises(UserError, match=r"No available memory.*engine\.vllm\.kv_cache_gib"):
        in_vllm()
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[vllm\]'"):
        in_vllm()


# Where the rest of the program gets its engine.


def test_the_default_engine_changes_no_digest_and_others_do(tiny_folder: Path) -> None:
    default = local(tiny_folder)
    assert role_key(default) == {
        "sha256": identity(default),
        "max_context": 500,
        "system_prompt": None,
    }
    here = "http://127.0.0.1:8000/v1"
    others = [by_vllm(), by_server(here), by_server("http://127.0.0.1:9000/v1")]
    keys = [role_key(dataclasses.replace(default, engine=engine)) for engine in others]
    keys.append(role_key(default))
    assert all(keys.count(key) == 1 for key in keys)
    faster = dataclasses.replace(SETTINGS, kv_cache_gib=9.0, eager=False)
    tuned = EngineConfig(name=EngineName.vllm, vllm=faster, server=None)
    assert role_key(dataclasses.replace(default, engine=tuned)) == keys[0]


def test_an_engine_s_settings_must_be_those_of_its_name() -> None:
    with pytest.raises(ValueError, match="choose an engine as a whole"):
        EngineConfig(name=EngineName.transformers, vllm=SETTINGS, server=None)
    with pytest.raises(ValueError, match="choose an engine as a whole"):
        EngineConfig(name=EngineName.endpoint, vllm=None, server=None)


def test_a_role_gets_its_engine_and_weights_are_read_only_where_they_are_used(
    tiny_folder: Path, fake: FakeVLLM
) -> None:
    models = Models(hardware())
    remote = models.base(local(tiny_folder, engine=by_server("http://127.0.0.1:8000/v1")))
    assert isinstance(remote.generator(), EndpointEngine)
    assert remote.generator().vocab_size == 300
    native = models.base(local(tiny_folder, engine=by_vllm()))
    assert isinstance(native.generator(), VLLMEngine)
    assert fake.loaded[0]["dtype"] == "float32"
    assert "model" not in vars(remote.weights)
    assert native.weights is remote.weights
    here = models.base(local(tiny_folder))
    assert isinstance(here.generator(), TransformersEngine)
    assert here.model is remote.model
    # What PPO samples from is a changed copy in this process, whatever the engine.
    assert isinstance(native.generator(native.model), TransformersEngine)


def saved_adapter(model: Path, folder: Path, models: Models) -> Artifact:
    """An artifact with an adapter that changes a model a lot."""
    base = models.base(local(model))
    tuned = adapters.attach(base.model, lora(), adapter="policy", seed=0)
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(tuned, "policy").values():
        layer.lora_B["policy"].weight.data.normal_(0, 0.2, generator=generator)
    adapters.save_adapter(
        tuned,
        "policy",
        folder / "adapter",
        base_id="tiny",
        base_sha256=base.sha256,
        probe_ids=[5, 6, 7],
    )
    tuned.unload()
    (folder / "manifest.json").write_text('{"files": {}}')
    return Artifact(stage="policy", digest="0" * 64, folder=folder)


def test_an_adapter_goes_to_vllm_by_its_folder_and_out_of_it_again(
    tiny_folder: Path, tmp_path: Path, fake: FakeVLLM
) -> None:
    models = Models(hardware())
    artifact = saved_adapter(tiny_folder, tmp_path / "artifact", models)
    told = models.policy(local(tiny_folder), artifact).next_token_logprobs([[5, 6, 7]])[0]
    answer = {token: SimpleNamespace(logprob=float(value)) for token, value in enumerate(told)}
    fake.outputs = [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[answer])])]
    engine = models.policy(local(tiny_folder, engine=by_vllm()), artifact)
    (asked,) = fake.calls
    assert asked.adapter.lora_path == str(artifact.folder.resolve() / "adapter")
    engine.forget()
    assert fake.removed == [asked.adapter.lora_int_id]
    base = models.policy(local(tiny_folder), None).next_token_logprobs([[5, 6, 7]])[0]
    for token, value in enumerate(base):
        answer[token].logprob = float(value)
    with pytest.raises(UserError, match=r"off by .* It has another base model than tiny"):
        models.policy(local(tiny_folder, engine=by_vllm()), artifact)


def test_bases_apart_are_apart_whatever_the_engine_that_loaded_them_first(
    tiny_folder: Path,
) -> None:
    models = Models(hardware())
    served = models.base(local(tiny_folder, engine=by_server("http://127.0.0.1:1/v1")))
    assert served.model is not models.apart().base(local(tiny_folder)).model


def served_folder(folder: Path) -> Path:
    """A random model with heads as wide as vLLM's kernels want them."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_computes_what_this_process_computes(tmp_path: Path) -> None:
    models = Models(hardware())
    folder = served_folder(tmp_path / "model")
    artifact = saved_adapter(folder, tmp_path / "artifact", models)
    for adapter in (None, artifact):
        here = models.policy(local(folder), adapter)
        there = models.policy(local(folder, engine=by_vllm()), adapter)
        greedy = {"seeds": [0, 1, 2], "max_new_tokens": 8, "temperature": 0.0}
        expected, found = here.sample(PROMPTS, **greedy), there.sample(PROMPTS, **greedy)
        assert [t.ids for t in found] == [t.ids for t in expected]
        assert [t.logprob for t in found] == pytest.approx([t.logprob for t in expected], abs=1e-3)
        warm = {"seeds": [0, 1, 2], "max_new_tokens": 8, "temperature": 0.7}
        once, again = there.sample(PROMPTS, **warm), there.sample(PROMPTS, **warm)
        assert [t.ids for t in once] == [t.ids for t in again]
        for prompt, tokens in zip(PROMPTS, once, strict=True):
            law = _tempered(here, prompt, tokens.ids, 0.7)
            assert tokens.logprob == pytest.approx(law, abs=1e-3)
        scores = there.score(PROMPTS, CONTINUATIONS)
        assert scores == pytest.approx(here.score(PROMPTS, CONTINUATIONS), abs=1e-3)
        whole = here.next_token_logprobs(PROMPTS)
        some = there.next_token_logprobs(PROMPTS, candidates=[3, 40])
        assert torch.allclose(some[:, [3, 40]], whole[:, [3, 40]], atol=1e-3)
        assert torch.allclose(there.next_token_logprobs(PROMPTS), whole, atol=1e-3)


def _tempered(engine: Any, prompt: list[int], ids: tuple[int, ...], temperature: float) -> float:
    total = 0.0
    for place, token in enumerate(ids):
        logprobs = engine.next_token_logprobs([[*prompt, *ids[:place]]])[0]
        total += float((logprobs / temperature).log_softmax(-1)[token])
    return total


def test_a_loaded_folder_is_the_one_that_other_engines_are_given(tiny_folder: Path) -> None:
    base = Models(hardware()).base(local(tiny_folder))
    again = AutoModelForCausalLM.from_pretrained(base.weights.folder, dtype=torch.float32)
    assert slow_score(again, PROMPTS[0], CONTINUATIONS[0]) == pytest.approx(
        base.generator().score(PROMPTS[:1], CONTINUATIONS[:1])[0], abs=1e-4
    )
