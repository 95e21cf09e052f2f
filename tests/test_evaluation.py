from __future__ import annotations

import math

import pytest
import torch

from cai.engines.transformers import TransformersEngine
from cai.evaluation import commonest_phrase, distinct_n, mean_logprobs
from cai.tokens import ChatEncoder
from cai.types import Message
from tests.conftest import byte_tokenizer
from tests.tiny import tiny_model


def test_distinct_n_by_hand() -> None:
    # a b, b a, a b: two different ones of three.
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["one", ""], 2) is None
    # The first five words: a b, b a, a b of the first text; c alone of the second has none.
    assert distinct_n(["a b a b", "c d e f"], 2, max_words=5) == pytest.approx(2 / 3)


def test_commonest_phrase_counts_prompts_not_repeats() -> None:
    texts = ["we are here to listen, we are here to listen", "We are here to listen!", "no"]
    phrase = commonest_phrase([[text] for text in texts])
    assert phrase is not None
    assert (phrase.text, phrase.num_prompts) == ("we are here to listen", 2)
    assert commonest_phrase([["too short"]]) is None
    several = commonest_phrase([["we are here to listen", "no"], ["so we are here to listen"]])
    assert several is not None
    assert (several.text, several.num_prompts) == ("we are here to listen", 2)


def test_mean_logprobs_equal_a_slow_reference_whatever_the_batch() -> None:
    encoder = ChatEncoder(byte_tokenizer())
    model = tiny_model(seed=0)
    generator = TransformersEngine(model, eos_id=encoder.eos_id, max_context=250)
    conversations = [[Message(role="user", content=text)] for text in ("hi", "a longer one")]
    responses = ["yes", "no, not at all"]
    together = mean_logprobs(
        generator, encoder, conversations=conversations, responses=responses, system=None
    )
    for messages, response, mean in zip(conversations, responses, together, strict=True):
        prompt, answer = encoder.conversation(messages), encoder.response_ids(response)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0].double()
        total = sum(
            float(logits[len(prompt) - 1 + i].log_softmax(-1)[token])
            for i, token in enumerate(answer)
        )
        assert mean == pytest.approx(total / len(answer), abs=1e-4)
        assert math.isfinite(mean)
    cut, whole = mean_logprobs(
        generator,
        encoder,
        conversations=conversations[:1] * 2,
        responses=["yes", "yes"],
        finished=[False, True],
        system=None,
    )
    prompt = encoder.conversation(conversations[0])
    (own,) = generator.score([prompt], [encoder.text_ids("yes")])
    assert cut == pytest.approx(own / len(encoder.text_ids("yes")), abs=1e-4)
    assert whole == pytest.approx(together[0], abs=1e-4)
